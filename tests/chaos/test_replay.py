"""The same id again: ten times at once, in another order, after its host has changed, after everything has been restarted."""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable
from time import time

import msgspec
import pytest
import uuid_utils

from domain.commands import Accepted, Actor, Command, canonical_json
from domain.errors import Code, Refusal
from domain.ids import uuid7
from domain.times import HOUR_MS
from tests.chaos.conftest import Chaos, Houses, in_short_on
from tests.support.crowd import Crowd, log_in
from tests.support.oracle import read_log
from tests.support.parts import Parts
from tests.support.rpc_socket import RpcSocket

COPIES = 10
ROOMS = 8
AT_ONCE = 200


class Told(msgspec.Struct, frozen=True):
    """An answer to one copy of a message."""

    offset: int
    at: int | str
    replayed: bool


class Repeaters:
    """Several devices of one person, and the platform's own router, which all send the same messages."""

    def __init__(self, parts: Parts, crowd: Crowd, user: str, sockets: list[RpcSocket]) -> None:
        self._crowd = crowd
        self._user = user
        self._sockets = sockets
        self._turn = itertools.count()
        self._limit = asyncio.Semaphore(AT_ONCE)

    async def send(self, room: str, identifier: str, text: str) -> Told:
        """One copy, by any of them, with what its way answers to be asked again asked again."""
        async with self._limit:
            way = next(self._turn) % (len(self._sockets) + 1)
            if way == len(self._sockets):
                return await self._by_router(room, identifier, text)
            data = {"conversation_id": room, "id": identifier, "text": text}
            answer = await self._sockets[way].rpc("message.send", data)
            return Told(answer["offset"], answer["at"], answer["replayed"])

    async def _by_router(self, room: str, identifier: str, text: str) -> Told:
        actor, payload = Actor("user", self._user), canonical_json({"text": text})
        while True:
            try:
                answer = await self._crowd.router.ask(Command("conversation", room, "send", actor, identifier, payload))
            except Refusal as refusal:
                if refusal.code not in (Code.UNAVAILABLE, Code.BUSY):
                    raise
                await asyncio.sleep(0.1)
            else:
                assert isinstance(answer, Accepted)
                return Told(answer.offset, answer.at, answer.replayed)


def an_id(number: int, chance: random.Random) -> str:
    """Every other one was made two days ago, and has waited in an outbox: it may have been sent before all that is known."""
    age_ms = 48 * HOUR_MS if number % 2 else 0
    return uuid7(int(time() * 1000) - age_ms, chance.randbytes(10))


def one_answer(answers: Iterable[Told]) -> list[str]:
    """What is wrong with all answers to one id: they name one offset, and one at most says that it did it."""
    told = list(answers)
    offsets, first = {each.offset for each in told}, sum(not each.replayed for each in told)
    return [f"{len(offsets)} offsets {offsets}, {first} times as new"] if len(offsets) != 1 or first > 1 else []


@in_short_on("mariadb")
@pytest.mark.catalogue(
    "R15", "the same id x10 at once, reordered, after a change of host, after a restart of everything"
)
@pytest.mark.timeout(1800)
async def test_an_id_has_one_effect_however_often_it_comes(chaos: Chaos, houses: Houses, store: str):
    count = chaos.repeats(short=300, full=10_000)
    chaos.load(f"{count} ids x {COPIES}, by WebSocket over two gateways and by NATS")
    parts = await houses.build(store, hosts=2, gateways=2)
    crowd: Crowd = await houses.enter(Crowd(parts))
    user = str(uuid_utils.uuid7())
    rooms = [str(uuid_utils.uuid7()) for _ in range(ROOMS)]
    for room in rooms:
        payload = canonical_json({"member_ids": [user, str(uuid_utils.uuid7())]})
        await crowd.router.ask(
            Command("conversation", room, "open", Actor("user", user), str(uuid_utils.uuid7()), payload)
        )
    tokens = await log_in(parts, [user] * 4)
    sockets = [await houses.enter(RpcSocket(parts.websocket, token)) for token in tokens]
    repeaters = Repeaters(parts, crowd, user, sockets)
    messages = {an_id(number, chaos.random): rooms[number % ROOMS] for number in range(count)}
    answers: dict[str, list[Told]] = defaultdict(list)

    async def send(identifiers: list[str], rounds: str) -> None:
        async def one(identifier: str) -> None:
            answers[identifier].append(await repeaters.send(messages[identifier], identifier, f"text of {identifier}"))

        for start in range(0, len(identifiers), 2_000):
            async with asyncio.TaskGroup() as group:
                for identifier in identifiers[start : start + 2_000]:
                    group.create_task(one(identifier))
            chaos.tell(f"{rounds}: {start} of {len(identifiers)} sent")

    async def everything() -> None:
        copies = [identifier for identifier in messages for _ in range(COPIES)]
        blocks = [copies[start : start + 500] for start in range(0, len(copies), 500)]
        for block in blocks:
            chaos.random.shuffle(block)
        await send([identifier for block in blocks for identifier in block], "at once")

    async def change_hosts() -> None:
        for host in ("host-0", "host-1"):
            await asyncio.sleep(0.5)
            parts.kill(host)
            await asyncio.sleep(0.5)
            await parts.parts[host].start()
            await parts.settled()

    await asyncio.gather(everything(), change_hosts())
    await send(list(reversed(messages)), "after the hosts have changed")
    for part in parts.parts.values():
        parts.kill(part.name)
    await parts.start()
    await crowd.reconnected()
    shuffled = list(messages)
    chaos.random.shuffle(shuffled)
    await send(shuffled, "after a restart")
    wrong = {identifier: found for identifier, told in answers.items() if (found := one_answer(told))}
    assert not wrong, wrong
    await _another_text_is_refused(repeaters, messages, shuffled[:20])
    rows = [row for row in await read_log(store) if row.type == "message.posted"]
    chaos.record(answers=sum(map(len, answers.values())), replayed=sum(t.replayed for a in answers.values() for t in a))
    assert len(rows) == count, "every id is stored once"
    places = {row.what: row.offset for row in rows}
    assert places == {identifier: told[0].offset for identifier, told in answers.items()}


async def _another_text_is_refused(repeaters: Repeaters, messages: dict[str, str], identifiers: list[str]) -> None:
    for identifier in identifiers:
        with pytest.raises(Refusal) as refused:
            await repeaters.send(messages[identifier], identifier, "another text")
        assert refused.value.code is Code.IDEMPOTENCY_MISMATCH
