"""The simulated database means what the ports say when it fails."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from domain.ports import Entry, OutcomeUnknown, StoreUnavailable, Turn
from tests.support.simulated_loop import Process, VirtualLoop, sealed
from tests.support.simulated_store import SimulatedDatabase, StoreFaults

STREAM = "conversation:00000000-0000-4000-8000-000000000000"


def turn(offset: int = 1) -> Turn:
    body = b'{"type":"member.joined","by":"x","at":"","user_id":"x"}'
    return Turn(0, [Entry(STREAM, offset, "member.joined", None, None, "user:x", 1, body)])


class Machine:
    """A database and a process that writes to it; `play` runs a story."""

    def __init__(self, **faults: Any) -> None:
        self.loop = VirtualLoop("seed")
        process = self.loop.process("database")
        self.database = SimulatedDatabase(
            self.loop, process, random.Random(1), StoreFaults(**faults), lambda who, what: None, lambda fault: None
        )
        self.host = self.loop.process("host")
        self.log = self.database.log(self.host, "host-0/1")

    def play(self, story: Callable[["Machine"], Coroutine[Any, Any, Any]]) -> Any:
        async def main() -> Any:
            return await self.host.spawn(story(self))

        try:
            with sealed():
                return self.loop.run_until_complete(main())
        finally:
            self.loop.dispose()

    @property
    def rows(self) -> int:
        return self.database.store.head(0)


async def taken(machine: Machine) -> None:
    await machine.log.take([0], "host-0/1", 1)


def test_a_commit_takes_a_moment_and_its_author_is_noted() -> None:
    async def story(machine: Machine) -> None:
        await taken(machine)
        committed = await machine.log.commit([turn()], {0: 1})
        assert committed.heads == {0: 2}
        assert machine.database.authors == {(0, 1): "host-0/1", (0, 2): "host-0/1"}
        assert machine.loop.time() > 0.0005

    Machine().play(story)


def test_what_is_refused_has_changed_nothing() -> None:
    async def story(machine: Machine) -> None:
        with pytest.raises(StoreUnavailable):
            await machine.log.commit([turn()], {0: 0})
        await asyncio.sleep(10.0)
        assert machine.rows == 0

    Machine(refused=1.0).play(story)


def test_a_torn_commit_has_happened_and_is_unknown() -> None:
    async def story(machine: Machine) -> None:
        with pytest.raises(OutcomeUnknown):
            await machine.log.commit([turn()], {0: 0})
        assert machine.rows == 1

    Machine(torn=1.0).play(story)


def test_a_commit_that_never_happened_is_unknown_too() -> None:
    async def story(machine: Machine) -> None:
        with pytest.raises(OutcomeUnknown):
            await machine.log.commit([turn()], {0: 0})
        await asyncio.sleep(10.0)
        assert machine.rows == 0

    Machine(never=1.0).play(story)


def test_a_zombie_commits_after_its_client_was_told_that_nobody_knows() -> None:
    async def story(machine: Machine) -> None:
        with pytest.raises(OutcomeUnknown):
            await machine.log.commit([turn()], {0: 0})
        assert machine.rows == 0
        await asyncio.sleep(10.0)
        assert machine.rows == 1

    Machine(zombie=1.0).play(story)


def test_a_zombie_that_a_takeover_overtakes_is_fenced() -> None:
    async def story(machine: Machine) -> None:
        with pytest.raises(OutcomeUnknown):
            await machine.log.commit([turn()], {0: 0})
        machine.database.faults = StoreFaults()
        await machine.log.take([0], "host-1/1", 1)
        await asyncio.sleep(10.0)
        assert machine.rows == 1

    Machine(zombie=1.0, zombie_s=5.0).play(story)


def test_a_commit_goes_on_when_its_client_dies() -> None:
    machine = Machine(sync_s=0.1)

    async def story(machine: Machine) -> None:
        async def commit() -> None:
            await machine.log.commit([turn()], {0: 0})

        dying: Process = machine.loop.process("dying")
        machine.log._session.process = dying
        dying.spawn(commit())
        await asyncio.sleep(0.0005)
        dying.crash()
        await asyncio.sleep(1.0)
        assert machine.rows == 1

    machine.play(story)


def test_out_of_reach_nothing_is_changed_and_everybody_is_told() -> None:
    async def story(machine: Machine) -> None:
        machine.database.cut_off(machine.host, 5.0)
        with pytest.raises(StoreUnavailable):
            await machine.log.heads([0])
        await asyncio.sleep(6.0)
        assert await machine.log.heads([0]) == {0: 0}

    Machine().play(story)


def test_an_open_transaction_keeps_others_out_until_its_writer_is_ended() -> None:
    async def story(machine: Machine) -> None:
        machine.database.lock([0], machine.log._session)
        other = machine.database.log(machine.host, "host-1/1")
        with pytest.raises(StoreUnavailable):
            await other.take([0], "host-1/1", 1)
        await other.end_writers([await machine.log.writer()])
        assert (await other.take([0], "host-1/1", 1))[0].position == 1

    Machine(locking=True).play(story)


def test_an_open_transaction_of_a_silent_client_ends_by_itself() -> None:
    async def story(machine: Machine) -> None:
        machine.database.lock([0], machine.log._session)
        await asyncio.sleep(5.1)
        other = machine.database.log(machine.host, "host-1/1")
        assert (await other.take([0], "host-1/1", 1))[0].position == 1

    Machine(locking=True).play(story)


def test_a_reader_may_be_behind_but_never_has_a_hole() -> None:
    async def story(machine: Machine) -> None:
        await taken(machine)
        for offset in range(1, 6):
            await machine.log.commit([turn(offset)], {0: offset})
            await asyncio.sleep(0.05)
        reader = machine.database.reader(machine.host)
        seen = {tuple(offset for offset, _ in await reader.read(STREAM, 0, 10)) for _ in range(50)}
        assert len(seen) > 1
        assert all(offsets == tuple(range(1, len(offsets) + 1)) for offsets in seen)

    Machine(lag=1.0, lag_s=0.5).play(story)
