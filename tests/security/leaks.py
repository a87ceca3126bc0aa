"""Requests to one database, a fifth of them cancelled at random points; whatever comes back must belong to who asked.

`python -m tests.security.leaks <database> <how many> <seed>` prints what it has seen as JSON; as a process of its own so
that several of them share a database's connections with nobody else's event loop.
"""

import asyncio
import json
import logging
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from domain.ports import Device, DeviceSession, StoreUnavailable
from storage.accounts import SqlAccounts
from storage.engine import Database
from storage.sessions import SqlSessions
from tests.support.keys import FixedKeys

CUT: Final = 0.37
"""So many are given a moment to be cancelled at, within the time that an answer usually takes: a fifth of all are."""
AT_ONCE: Final = 12
"""More than there are pooled connections: some are cancelled while they wait for one."""
OWNERS: Final = 100


@dataclass
class Seen:
    """`foreign` are rows of somebody else's, by what was asked; `cancelled` requests had no answer any more."""

    asked: int = 0
    answered: int = 0
    cancelled: int = 0
    unavailable: int = 0
    rows: int = 0
    foreign: list[str] = field(default_factory=list)


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


def new_id() -> str:
    return str(uuid.uuid4())


class Owners:
    """People of whom every row says whose it is: the account by its name, the session by its device."""

    def __init__(self, database: Database) -> None:
        self._accounts = SqlAccounts(database, SystemClock(), new_id, FixedKeys())
        self._sessions = SqlSessions(database)
        self._phones: dict[str, str] = {}
        self._of_session: dict[str, str] = {}
        self._refresh: dict[str, bytes] = {}
        self.kinds: tuple[Callable[[str], Awaitable[list[str]]], ...] = (
            self._account,
            self._by_phone,
            self._session,
            self._by_refresh,
            self._listed,
            self._written,
        )

    async def settle(self, rng: random.Random) -> list[str]:
        for _ in range(OWNERS):
            user, _ = await self._accounts.find_or_create(f"+86138{rng.randrange(10**8):08d}", "en")
            await self._accounts.update(user.id, name=f"owner {user.id}", locale=None, avatar=None)
            session, refresh = new_id(), rng.randbytes(32)
            device = Device(user.id, f"owner {user.id}", "test")
            await self._sessions.open(DeviceSession(session, user.id, device, 1, 1), refresh, 1 << 50)
            self._phones[user.id], self._of_session[user.id], self._refresh[user.id] = user.phone, session, refresh
        return list(self._phones)

    async def _account(self, owner: str) -> list[str]:
        return [text for user in (await self._accounts.get([owner])).values() for text in (user.id, user.name)]

    async def _by_phone(self, owner: str) -> list[str]:
        user = await self._accounts.find(self._phones[owner])
        return [] if user is None else [user.id, user.name]

    async def _session(self, owner: str) -> list[str]:
        session = await self._sessions.get(self._of_session[owner])
        return [] if session is None else [session.user_id, session.device.name]

    async def _by_refresh(self, owner: str) -> list[str]:
        session = await self._sessions.of_refresh(self._refresh[owner])
        return [] if session is None else [session.user_id, session.device.id]

    async def _listed(self, owner: str) -> list[str]:
        return [text for each in await self._sessions.list_of(owner) for text in (each.user_id, each.device.name)]

    async def _written(self, owner: str) -> list[str]:
        user = await self._accounts.update(owner, name=f"owner {owner}", locale=None, avatar=None)
        return [user.id, user.name]


WEIGHTS: Final = (25, 20, 25, 14, 15, 1)
"""Of the kinds: a write is an fsync, and one in a hundred of them is as good a reader of leftovers as any."""


async def drive(url: str, count: int, seed: int) -> Seen:
    """Ask `count` times, `AT_ONCE` at a time."""
    rng, seen, database = random.Random(seed), Seen(), Database(url)
    owners = Owners(database)
    people = await owners.settle(rng)
    loop = asyncio.get_running_loop()
    usual_s = 0.004

    async def one() -> None:
        nonlocal usual_s
        owner, (kind,) = rng.choice(people), rng.choices(owners.kinds, WEIGHTS)
        asking = asyncio.ensure_future(kind(owner))
        cut = loop.call_later(rng.uniform(0, usual_s), asking.cancel) if rng.random() < CUT else None
        began_s = loop.time()
        try:
            texts = await asking
        except asyncio.CancelledError:
            if not asking.cancelled():
                raise
            seen.cancelled += 1
            return
        except StoreUnavailable:
            seen.unavailable += 1
            return
        except Exception as error:
            # An answer that does not fit its question is somebody else's as well.
            seen.foreign.append(f"{kind.__name__} of {owner}: {error!r}")
            return
        finally:
            if cut is not None:
                cut.cancel()
        usual_s += (loop.time() - began_s - usual_s) / 100
        seen.answered += 1
        seen.rows += len(texts) // 2
        if not texts or any(owner not in (text or "") for text in texts):
            seen.foreign.append(f"{kind.__name__} of {owner}: {texts}")

    async def many() -> None:
        while seen.asked < count:
            seen.asked += 1
            await one()
            if seen.asked % 10_000 == 0:
                print(seed, seen.asked, seen.cancelled, len(seen.foreign), file=sys.stderr, flush=True)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(many())
    finally:
        await database.close()
    return seen


async def drive_rest(port: int, people: list[tuple[str, str]], count: int, seed: int) -> Seen:
    """The same over HTTP: `people` are ids and access tokens. Who gives up closes the connection in the middle of it."""
    rng, seen = random.Random(seed), Seen()
    usual_s = 0.01

    async def answered(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(size.split(b":")[1]))
        return b"" if b" 503 " in head[:20] else body

    async def many() -> None:
        nonlocal usual_s
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while seen.asked < count:
            seen.asked += 1
            owner, token = rng.choice(people)
            path = rng.choice(("/v1/me", "/v1/me", "/v1/auth/sessions"))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            began_s = time.perf_counter()
            limit_s = rng.uniform(0, usual_s) if rng.random() < CUT else None
            try:
                async with asyncio.timeout(limit_s):
                    body = await answered(reader)
            except TimeoutError:
                seen.cancelled += 1
                writer.transport.abort()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            usual_s += (time.perf_counter() - began_s - usual_s) / 100
            if not body:
                seen.unavailable += 1
                continue
            seen.answered += 1
            seen.rows += 1
            if f"owner {owner}".encode() not in body or any(p[0].encode() in body for p in people if p[0] != owner):
                seen.foreign.append(f"{path} of {owner}: {body!r}")
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(many())
    return seen


def main() -> None:
    import uvloop

    # The pool writes down every connection that a cancellation has cost it: tens of thousands of them.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    seen = uvloop.run(drive(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    print(json.dumps({**vars(seen), "foreign": seen.foreign[:20], "foreign_rows": len(seen.foreign)}))


if __name__ == "__main__":
    main()
