"""The database in virtual time: slow, away, torn, late. What it holds is a `MemoryStore`, and it notes who wrote what when.

The errors mean what the ports say. `StoreUnavailable` from a commit: nothing was changed and nothing will be. `OutcomeUnknown`:
it was, it was not, or it will be in a while, whatever becomes of who asked. Other writes may have happened when they fail.
"""

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec

from domain.ports import Committed, Entry, Loaded, OutcomeUnknown, StoreUnavailable, Takeover, Turn
from storage.memory import MemoryFacts, MemoryPartitionLog, MemoryReadModels, MemoryStore, MemoryStreamReader
from tests.support.simulated_loop import Process, VirtualLoop

_STATEMENT_S: Final = 5.0
"""After so long without an answer a client of the database gives up."""
_CONNECT_S: Final = 3.0
_LOCK_WAIT_S: Final = 2.0
_IDLE_S: Final = 5.0
"""A transaction whose client says nothing for so long is rolled back."""
_WRITES: Final = frozenset({"save_cursors", "reserve", "drop_reminders", "add_positions"})
_IN_DOUBT: Final = frozenset({"take", "save_cursors"})
"""Writes besides commits that may say so when their outcome is unknown; the others call it unavailable."""
_FREE: Final = frozenset({"writer"})


class StoreFaults(msgspec.Struct):
    """How often what goes wrong, as shares of calls; times in seconds."""

    least_s: float = 0.0002
    jitter_s: float = 0.0008
    sync_s: float = 0.002
    slow: float = 0.0
    slow_s: float = 1.0
    refused: float = 0.0
    """Commits and other writes that fail before they have changed anything."""
    never: float = 0.0
    """Commits of unknown outcome that did not happen."""
    torn: float = 0.0
    """Commits of unknown outcome that happened; other writes that fail after they happened."""
    zombie: float = 0.0
    """Commits of unknown outcome that happen later, within `zombie_s`."""
    zombie_s: float = 2.0
    reads: float = 0.0
    """Reads that fail."""
    lag: float = 0.0
    """Reads of streams that see them as they were up to `lag_s` ago."""
    lag_s: float = 0.3
    pieces: float = 0.0
    """Takeovers of many partitions that take several transactions."""
    locking: bool = False
    """Like MySQL: a transaction that is open holds its partitions, and ends only when its client says so."""


class _Call:
    """A statement on its way to the database and back."""

    __slots__ = ("effect", "future", "name", "process", "session", "unanswered", "write")

    def __init__(
        self, session: "Session", name: str, effect: Callable[[], Any], future: "asyncio.Future[Any]", write: bool
    ) -> None:
        self.session = session
        self.process = session.process
        self.name = name
        self.effect = effect
        self.future = future
        self.write = write
        self.unanswered = False


class SimulatedDatabase:
    """The server and its disk. It survives everything; `process` may be paused, `down` for a while, or cut off from some."""

    def __init__(
        self,
        loop: VirtualLoop,
        process: Process,
        chance: random.Random,
        faults: StoreFaults,
        trace: Callable[[str, str], None],
        count_fault: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.process = process
        self.faults = faults
        self.store = MemoryStore()
        self.authors: dict[tuple[int, int], str] = {}
        """Who wrote the row at (partition, position); takeover rows included."""
        self.times: dict[str, list[float]] = {}
        """When the entries of a stream were committed, by offset - 1."""
        self.down_until_s = 0.0
        self.cut_until_s: dict[str, float] = {}
        self.locks: dict[int, tuple[Session, asyncio.Future[None]]] = {}
        self._log = MemoryPartitionLog(self.store)
        self._chance = chance
        self._trace = trace
        self._count = count_fault
        self._calls: dict[int, _Call] = {}
        self._numbers = 0

    # --- what processes hold ---------------------------------------------------------------------------------------

    def log(self, process: Process, owner: str) -> "SimulatedLog":
        return SimulatedLog(self, Session(self, process, owner), self._log)

    def reader(self, process: Process) -> "SimulatedReader":
        return SimulatedReader(self, Session(self, process, process.name), MemoryStreamReader(self.store))

    def facts(self, process: Process) -> Any:
        return Remote(self, Session(self, process, process.name), MemoryFacts(self.store))

    def read_models(self, process: Process) -> Any:
        return Remote(self, Session(self, process, process.name), MemoryReadModels(self.store))

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    # --- faults ----------------------------------------------------------------------------------------------------

    def go_down(self, for_s: float) -> None:
        """Connections break, and no new ones are to be had for a while."""
        self.down_until_s = self.loop.time() + for_s
        for partition in list(self.locks):
            self.unlock(partition)

    def cut_off(self, process: Process, for_s: float) -> None:
        """The process cannot reach the database for a while."""
        self.cut_until_s[process.name] = self.loop.time() + for_s

    def hang(self, for_s: float) -> None:
        """SIGSTOP of the database: clients give up one after the other, and what they wanted may happen afterwards."""
        self.process.pause()
        for call in list(self._calls.values()):
            self.loop.later(call.process, _STATEMENT_S, self._give_up, call)
        self.loop.later(self.loop.root, for_s, self.process.resume)

    def heal(self) -> None:
        self.down_until_s = 0.0
        self.cut_until_s.clear()
        self.process.resume()
        lasting = self.faults
        self.faults = StoreFaults(locking=lasting.locking, least_s=lasting.least_s, jitter_s=lasting.jitter_s)

    # --- calls -----------------------------------------------------------------------------------------------------

    def delay(self) -> float:
        faults, drawn = self.faults, self._chance.random
        late_s = faults.least_s + drawn() * faults.jitter_s
        if faults.slow and drawn() < faults.slow:
            self._count("slow statement")
            late_s += drawn() * faults.slow_s
        return late_s

    def reachable(self, process: Process) -> bool:
        now_s = self.loop.time()
        return now_s >= self.down_until_s and now_s >= self.cut_until_s.get(process.name, 0.0)

    async def call(self, session: "Session", name: str, effect: Callable[[], Any]) -> Any:
        """Have the database do something at a moment of its own."""
        process = session.process
        if not self.reachable(process):
            self._count("store out of reach")
            await asyncio.sleep(_CONNECT_S * self._chance.random() ** 3)
            raise StoreUnavailable("the database cannot be reached")
        write = name in ("commit", "take") or name in _WRITES
        call = _Call(session, name, effect, self.loop.create_future(), write)
        key = self.next_number()
        self._calls[key] = call
        try:
            self._send(call)
            return await call.future
        finally:
            del self._calls[key]

    def _send(self, call: _Call) -> None:
        there_s, back_s = self.delay(), self.delay()
        fate = self._fate(call)
        if fate is not None:
            self._count(f"{call.name} {fate}")
            self._trace(call.process.name, f"{call.name} will be {fate}")
        if call.write:
            there_s += self.faults.sync_s * self._chance.random()
        match fate:
            case "refused":
                self.loop.later(call.process, there_s + back_s, _reject, call, StoreUnavailable("refused"))
                return
            case "never":
                self.loop.later(call.process, there_s + back_s, _reject, call, self._doubt(call, "broke off"))
                return
            case "zombie":
                self.loop.later(call.process, there_s, _reject, call, self._doubt(call, "lost on the way"))
                call.unanswered = True
                there_s += self._chance.random() * self.faults.zombie_s
        if self.process.paused:
            self.loop.later(call.process, _STATEMENT_S, self._give_up, call)
        self.loop.later(self.process, there_s, self._execute, call, fate, back_s)

    def _fate(self, call: _Call) -> str | None:
        faults, drawn = self.faults, self._chance.random()
        if call.name in _FREE:
            return None
        if not call.write:
            return "refused" if drawn < faults.reads else None
        for fate, share in (("refused", faults.refused), ("never", faults.never), ("torn", faults.torn)):
            if drawn < share:
                return fate
            drawn -= share
        return "zombie" if drawn < faults.zombie else None

    def _doubt(self, call: _Call, why: str) -> Exception:
        """What a client is told that cannot know. Only a commit has to be told so in these words."""
        if call.name == "commit" or (call.name in _IN_DOUBT and self._chance.random() < 0.5):
            return OutcomeUnknown(f"the connection {why}")
        return StoreUnavailable(f"the connection {why}")

    def _execute(self, call: _Call, fate: str | None, back_s: float) -> None:
        """In the database."""
        if self.loop.time() < self.down_until_s:
            error = self._doubt(call, "was reset") if call.write else StoreUnavailable("the connection was reset")
            self.loop.later(call.process, back_s, _reject, call, error)
            return
        try:
            result = call.effect()
        except StoreUnavailable as error:
            self.loop.later(call.process, back_s, _reject, call, error)
            return
        if call.unanswered:
            return
        if fate == "torn" or not self.reachable(call.process):
            error = self._doubt(call, "was lost") if call.write else StoreUnavailable("the connection was lost")
            self.loop.later(call.process, back_s, _reject, call, error)
            return
        self.loop.later(call.process, back_s, _resolve, call, result)

    def _give_up(self, call: _Call) -> None:
        if not call.future.done():
            self._count(f"{call.name} timed out")
            error = self._doubt(call, "timed out") if call.write else StoreUnavailable("the connection timed out")
            _reject(call, error)

    # --- what happens in it ----------------------------------------------------------------------------------------

    def commit(self, owner: str, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        before = {turn.partition: self.store.head(turn.partition) for turn in turns}
        committed: Committed = run_now(self._log.commit(turns, heads))
        now_s = self.loop.time()
        for partition, first in before.items():
            for position in range(first + 1, self.store.head(partition) + 1):
                entry = self.store.logs[partition][position - 1]
                assert entry is not None
                self.authors[partition, position] = owner
                self.times.setdefault(entry.stream, []).append(now_s)
                self._trace(owner, f"committed {entry.type} {partition}@{position} {entry.stream}#{entry.offset}")
        if committed.fenced or committed.stale:
            self._trace(owner, f"was left out: fenced {sorted(committed.fenced)}, stale {sorted(committed.stale)}")
        return committed

    def take(self, owner: str, partitions: Sequence[int], at: int) -> dict[int, Takeover]:
        taken: dict[int, Takeover] = run_now(self._log.take(partitions, owner, at))
        for partition, takeover in taken.items():
            self.authors[partition, takeover.position] = owner
        self._trace(owner, f"took {[f'{p}@{t.position}' for p, t in sorted(taken.items())]}")
        return taken

    def end_at(self, stream: str, at_s: float) -> int:
        """The stream's last offset as it was at a moment."""
        return bisect_right(self.times.get(stream, []), at_s)

    # --- open transactions -----------------------------------------------------------------------------------------

    def lock(self, partitions: Sequence[int], session: "Session") -> None:
        """The session inserts rows: until its transaction ends nobody else can. A client that says nothing is rolled back."""
        if any(partition in self.locks for partition in partitions):
            raise StoreUnavailable("a deadlock")
        for partition in partitions:
            self.locks[partition] = (session, self.loop.create_future())
        self.loop.later(self.process, _IDLE_S, self._roll_back_idle, session, session.transaction)

    def _roll_back_idle(self, session: "Session", transaction: int) -> None:
        held = [partition for partition, (holder, _) in self.locks.items() if holder is session]
        if held and session.transaction == transaction:
            session.transaction += 1
            for partition in held:
                self.unlock(partition)

    def roll_back(self, session: "Session") -> None:
        """The client has ended its transaction, or its connection is gone: the server hears of it in a moment."""

        def hear() -> None:
            for partition, (holder, _) in list(self.locks.items()):
                if holder is session:
                    self.unlock(partition)

        self.loop.later(self.process, self.delay(), hear)

    def gone(self, process: Process) -> None:
        """A process has died, and with it the transactions that it had open."""
        for session, _ in list(self.locks.values()):
            if session.process is process:
                self.roll_back(session)

    def unlock(self, partition: int) -> None:
        held = self.locks.pop(partition, None)
        if held is not None and not held[1].done():
            held[1].set_result(None)


class Session:
    """A process's connection to the database. `owner` is the name that its rows are noted under."""

    def __init__(self, database: SimulatedDatabase, process: Process, owner: str) -> None:
        self.number = database.next_number()
        self.process = process
        self.owner = owner
        self.transaction = 0
        """Goes up with each one that begins, and whenever the server ends what this connection had open."""


class Remote:
    """Any port over the database, its methods called there; faults as for reads, or writes where it is one."""

    def __init__(self, database: SimulatedDatabase, session: Session, inner: Any) -> None:
        self._database = database
        self._session = session
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._database.call(self._session, name, lambda: run_now(method(*args, **kwargs)))

        return call


class SimulatedLog(Remote):
    """`domain.ports.PartitionLog`: one host's writing connection."""

    async def writer(self) -> int:
        return self._session.number

    async def end_writers(self, numbers: Sequence[int]) -> None:
        def end() -> None:
            for partition, (session, _) in list(self._database.locks.items()):
                if session.number in numbers:
                    session.transaction += 1
                    self._database.unlock(partition)

        await self._database.call(self._session, "end_writers", end)

    async def take(self, partitions: Sequence[int], owner: str, at: int) -> dict[int, Takeover]:
        database, wanted = self._database, sorted(set(partitions))
        pieces = [wanted]
        if len(wanted) > 1 and database._chance.random() < database.faults.pieces:
            middle = database._chance.randrange(1, len(wanted))
            pieces = [wanted[:middle], wanted[middle:]]
        taken: dict[int, Takeover] = {}
        for piece in pieces:
            await self._unlocked(piece)
            taken |= await database.call(self._session, "take", lambda piece=piece: database.take(owner, piece, at))
        return taken

    async def _unlocked(self, partitions: Sequence[int]) -> None:
        """Wait for transactions that hold the partitions; not for long."""
        for partition in partitions:
            held = self._database.locks.get(partition)
            if held is not None and held[0] is not self._session:
                done, _ = await asyncio.wait([asyncio.shield(held[1])], timeout=_LOCK_WAIT_S)
                if not done:
                    self._database._count("takeover waited for a lock")
                    raise StoreUnavailable("somebody holds these rows in a transaction that does not end")

    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        database, owner, turns, heads = self._database, self._session.owner, list(turns), dict(heads)
        if database.faults.locking:
            await self._begin(sorted({turn.partition for turn in turns}))
        transaction = self._session.transaction

        def effect() -> Committed:
            if self._session.transaction != transaction:
                raise StoreUnavailable("the server has ended the connection")
            committed = database.commit(owner, turns, heads)
            for partition, (session, _) in list(database.locks.items()):
                if session is self._session:
                    database.unlock(partition)
            return committed

        try:
            committed: Committed = await database.call(self._session, "commit", effect)
        except StoreUnavailable:
            database.roll_back(self._session)
            raise
        return committed

    async def _begin(self, partitions: Sequence[int]) -> None:
        """Insert the rows; from here to the end of the transaction nobody else can."""
        database, session = self._database, self._session
        session.transaction += 1
        for partition in [p for p, (holder, _) in database.locks.items() if holder is session]:
            database.unlock(partition)  # what an earlier connection of ours has left open is ended by the next one
        await self._unlocked(partitions)
        if any(partition in database.locks for partition in partitions):
            raise StoreUnavailable("a deadlock")
        await database.call(session, "begin", lambda: database.lock(partitions, session))

    async def load(self, streams: Sequence[str], schemas: Mapping[str, int]) -> dict[str, Loaded]:
        """Snapshots first, then tails: commits come in between."""
        database, inner = self._database, self._inner
        first = await database.call(self._session, "load", lambda: run_now(inner.load(streams, schemas)))

        def tails() -> dict[str, Loaded]:
            entries: Mapping[str, list[Entry]] = database.store.streams
            offsets = {stream: found.snapshot.offset if found.snapshot else 0 for stream, found in first.items()}
            return {
                stream: Loaded(found.snapshot, list(entries.get(stream, [])[offsets[stream] :]))
                for stream, found in first.items()
            }

        loaded: dict[str, Loaded] = await database.call(self._session, "load", tails)
        return loaded


class SimulatedReader(Remote):
    """`domain.ports.StreamReader`, which may be a little behind."""

    async def read(self, stream: str, after: int, limit: int, max_bytes: int = 262_144) -> list[tuple[int, bytes]]:
        database = self._database

        def effect() -> list[tuple[int, bytes]]:
            rows: list[tuple[int, bytes]] = run_now(self._inner.read(stream, after, limit, max_bytes))
            if database.faults.lag and database._chance.random() < database.faults.lag:
                database._count("reader behind")
                seen = database.end_at(stream, database.loop.time() - database._chance.random() * database.faults.lag_s)
                rows = [row for row in rows if row[0] <= seen]
            return rows

        found: list[tuple[int, bytes]] = await database.call(self._session, "read", effect)
        return found


def run_now(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    work.close()
    raise AssertionError("the memory store has waited for something")


def _resolve(call: _Call, result: Any) -> None:
    if not call.future.done():
        call.future.set_result(result)


def _reject(call: _Call, error: Exception) -> None:
    if not call.future.done():
        call.future.set_exception(error)
