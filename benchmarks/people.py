"""Users who are logged in, and what they have before anything is measured: conversations and orders.

Logging in by a code takes three requests. On a platform of its own the bench writes the same rows that a login writes,
through the same classes, and signs the tokens with the platform's key; elsewhere everybody really logs in.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
import uuid_utils

from benchmarks.load.http import HttpFailed, HttpPool
from benchmarks.target import Target
from deploy.connections import SystemClock, keys_folder, new_id
from deploy.keys import key_ring
from deploy.settings import Settings
from domain.ports import Device, DeviceSession
from storage.accounts import SqlAccounts
from storage.engine import Database
from storage.sessions import SqlSessions
from storage.tokens import JwtIssuer, SigningKeys

TOKEN_LIFE_S: Final = 3_600
_DAY_MS: Final = 86_400_000
_AT_ONCE: Final = 16
_SITE: Final = {"lat": 31.2304, "lon": 121.4737, "address": "100 Century Avenue, Pudong, Shanghai"}
T = TypeVar("T")


class Person(msgspec.Struct, frozen=True):
    """A user with an access token that lives for the whole round."""

    id: str
    token: str


async def logged_in(target: Target, count: int) -> list[Person]:
    """So many new users with a device session each. Raises HttpFailed."""
    if target.own and target.settings is not None:
        return await _written(target.settings, count)
    async with HttpPool(target.host, target.port) as http:
        base = 13_000_000_000 + secrets.randbelow(5_000) * 1_000_000
        return await _each([f"+86{base + number}" for number in range(count)], lambda phone: _by_code(http, phone))


async def _written(settings: Settings, count: int) -> list[Person]:
    database, clock = Database(settings.database_url), SystemClock()
    accounts = SqlAccounts(database, clock, new_id, key_ring(settings, database))
    sessions = SqlSessions(database)
    tokens = JwtIssuer(SigningKeys.open(keys_folder(settings)))
    people = []
    try:
        for number in range(count):
            user, _ = await accounts.find_or_create(f"+86{13_000_000_000 + number}", "en")
            now_ms = clock.now_ms()
            session = DeviceSession(new_id(), user.id, Device(f"bench-{number}", "bench", "python"), now_ms, now_ms)
            await sessions.open(session, tokens.hash(tokens.refresh()), now_ms + 30 * _DAY_MS)
            people.append(Person(user.id, tokens.access(user.id, session.id, now_ms, TOKEN_LIFE_S)))
    finally:
        await database.close()
    return people


async def _by_code(http: HttpPool, phone: str) -> Person:
    await http.ask("POST", "/v1/auth/otp", body={"phone": phone})
    items = (await http.ask("GET", f"/dev/outbox?to={quote(phone, safe='')}"))["items"]
    code = next((item["code"] for item in items if item.get("code")), None)
    if code is None:
        raise HttpFailed(f"no code for {phone} in /dev/outbox: the platform must run with RENOVEASY_ENV=dev")
    device = {"id": f"bench-{phone[-6:]}", "name": "bench", "platform": "python"}
    grant = await http.ask("POST", "/v1/auth/otp/verify", body={"phone": phone, "code": code, "device": device})
    return Person(grant["user"]["id"], grant["access_token"])


async def conversations(http: HttpPool, pairs: Sequence[tuple[Person, Person]]) -> list[str]:
    """A conversation for each pair; their ids in the same order."""

    async def open_one(pair: tuple[Person, Person]) -> str:
        first, second = pair
        made = await http.ask(
            "POST", "/v1/conversations", first.token, {"id": str(uuid_utils.uuid7()), "member_ids": [second.id]}
        )
        return str(made["id"])

    return await _each(pairs, open_one)


def new_order() -> dict[str, Any]:
    """The body of a request for a new order, with an id of its own."""
    return {
        "id": str(uuid_utils.uuid7()),
        "category": "plumbing",
        "title": "Kitchen tap drips",
        "description": "The tap in the kitchen has been dripping for a week, and the valve below it is stuck.",
        "site": _SITE,
    }


async def orders(http: HttpPool, people: Sequence[Person]) -> list[str]:
    """A draft order of each person; their ids in the same order."""

    async def make(person: Person) -> str:
        return str((await http.ask("POST", "/v1/orders", person.token, new_order()))["id"])

    return await _each(people, make)


async def _each(items: Sequence[Any], work: Callable[[Any], Awaitable[T]]) -> list[T]:
    """The work on every item, a few at a time; raises what the first that fails raises."""
    found: list[T | None] = [None] * len(items)
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for index, item in waiting:
            found[index] = await work(item)

    workers = [asyncio.create_task(worker()) for _ in range(min(_AT_ONCE, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
    return [item for item in found if item is not None]
