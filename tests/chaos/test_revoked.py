"""Who may not read any more gets nothing any more: of what was committed after that, not one event.

Over two gateways, with several devices each, some of which read slowly, while the others go on as fast as they can.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import NamedTuple

import pytest
import uuid_utils

from deploy.connections import SystemClock, new_id
from domain.aggregate import WorkerProfile
from domain.channels import REVOKED_SUBJECT
from domain.commands import Accepted, Actor, Command, canonical_json
from storage.accounts import SqlAccounts
from storage.broker import NatsBroker
from storage.engine import Database
from storage.sessions import SqlSessions
from storage.tokens import JwtIssuer, SigningKeys
from tests.chaos.conftest import Chaos, Houses
from tests.support.crowd import Crowd, Device, Place, Walkie, log_in
from tests.support.keys import ring_of
from tests.support.oracle import spread
from tests.support.parts import Parts
from tests.support.slow_reader import SlowReader

DEVICES = 3
BEFORE, AFTER = 10, 20
"""Messages that are sent just before somebody is taken out, and just after."""
SLOW_BYTES_PER_S = 2_048
STUFFING = 600
TEXT = "x" * 8_000
LATE_S = 1.0
SITE = {"lat": 31.2304, "lon": 121.4737, "address": "Nanjing Road 1"}
LINES = [{"title": "Parts", "amount": 3000}, {"title": "Work", "amount": 9000}]


class Case(NamedTuple):
    """Somebody who has lost the right to read a stream. `last` is the last offset that they may have been shown."""

    kind: str
    stream: str
    devices: list[str]
    last: int
    at_s: float
    """When that was acknowledged."""


class Town:
    """Two gateways, people on them, and those who are about to be sent away."""

    def __init__(self, parts: Parts, crowd: Crowd) -> None:
        self.parts = parts
        self.crowd = crowd
        self.database = Database(parts.database_url)
        self.sessions = SqlSessions(self.database)
        self.accounts = SqlAccounts(self.database, SystemClock(), new_id, ring_of(self.database, parts.folder))
        self.issuer = JwtIssuer(SigningKeys.open(parts.folder / "keys"))
        self.broker = NatsBroker(parts.nats_url, "", "town")
        self.slow: list[SlowReader] = []
        self._made = 0

    async def __aenter__(self) -> "Town":
        await self.broker.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await asyncio.gather(*(reader.stop() for reader in self.slow))
        await self.broker.close()
        await self.database.close()

    async def ask(self, kind: str, stream: str, name: str, actor: Actor, version: int | None = None, **payload: object):
        body = canonical_json(payload)
        command = Command(kind, stream.partition(":")[2], name, actor, new_id(), body, version)  # type: ignore[arg-type]
        answer = await self.crowd.router.ask(command, 10.0)
        assert isinstance(answer, Accepted)
        return answer

    async def room(self, *members: str) -> str:
        """A conversation of these, opened by the first."""
        stream = f"conversation:{new_id()}"
        await self.ask("conversation", stream, "open", Actor("user", members[0]), member_ids=list(members))
        return stream

    async def person(self, *, works: bool = False) -> str:
        """Somebody who has an account."""
        self._made += 1
        user, _ = await self.accounts.find_or_create(f"+86138{self._made:08d}", "en")
        if works:
            profile = WorkerProfile(("plumbing",), SITE["lat"], SITE["lon"], 20_000, 10_000, "CNY")
            await self.accounts.become_worker(user.id, profile)
        return user.id

    async def devices(self, user: str, stream: str) -> list[Device]:
        """So many devices of somebody that follow a stream, spread over the gateways by the kernel."""
        tokens = [(await log_in(self.parts, [user]))[0] for _ in range(DEVICES)]
        devices = []
        for token in tokens:
            device = Device(self.crowd, f"{user[-6:]}/{token[-6:]}", user, token, self.parts.websocket)
            device.follow(stream)
            device.start()
            devices.append(device)
        self.crowd.devices += devices
        return devices

    async def slow_device(self, user: str, stream: str) -> SlowReader:
        """One more, which is far behind in another conversation and reads little at a time."""
        friend = new_id()
        stuffed = await self.room(friend, user)
        reader = SlowReader(self.crowd, f"{user[-6:]}/slow", user, (await log_in(self.parts, [user]))[0])
        reader.places = {stream: Place(), stuffed: Place()}
        self.slow.append(reader)
        reader.start()
        await reader.online()
        reader.bytes_per_s = SLOW_BYTES_PER_S
        voice = Walkie(self.crowd, "friend", friend, self.crowd.router)
        for _ in range(STUFFING):
            message = self.crowd.message(stuffed, voice)
            message.text = TEXT
            voice.say(message)
        while not voice.settled:
            await asyncio.sleep(0.02)
        return reader

    async def online(self, devices: list[Device]) -> None:
        async with asyncio.timeout(30.0):
            while not all(device.online for device in devices):
                await asyncio.sleep(0.01)

    async def say(self, stream: str, by: str, count: int) -> None:
        """So many messages, none of which waits for the one before."""
        await asyncio.gather(
            *(self.ask("conversation", stream, "send", Actor("user", by), text=f"{n}") for n in range(count))
        )


async def taken_out(town: Town, slow: bool, how: str) -> Case:
    """Somebody is removed by who opened the conversation, or leaves, while the others talk."""
    owner, friend, leaver = (str(uuid_utils.uuid7()) for _ in range(3))
    stream = await town.room(owner, friend, leaver)
    devices = await town.devices(leaver, stream)
    readers = [await town.slow_device(leaver, stream)] if slow else []
    await town.online(devices)
    before = asyncio.create_task(town.say(stream, friend, BEFORE))
    await asyncio.sleep(0)
    actor = Actor("user", owner if how == "member.remove" else leaver)
    payload = {"user_id": leaver} if how == "member.remove" else {}
    leaving = asyncio.create_task(town.ask("conversation", stream, how, actor, **payload))
    await asyncio.sleep(0)
    after = asyncio.create_task(town.say(stream, friend, AFTER))
    left = await leaving
    at_s = perf_counter()
    await asyncio.gather(before, after)
    await town.say(stream, owner, 1)
    return Case(how, stream, [item.name for item in [*devices, *readers]], left.offset, at_s)


async def removed(town: Town, slow: bool) -> Case:
    return await taken_out(town, slow, "member.remove")


async def left(town: Town, slow: bool) -> Case:
    return await taken_out(town, slow, "leave")


async def replaced(town: Town, slow: bool) -> Case:
    """A hired worker gives the order back, and others quote for it at the same moment."""
    customer = await town.person()
    first, second = await town.person(works=True), await town.person(works=True)
    stream = f"order:{new_id()}"
    wish = {
        "category": "plumbing",
        "title": "Tap",
        "description": "It drips, day and night, and has done so for weeks.",
    }
    await town.ask("order", stream, "create", Actor("user", customer), **wish, site=SITE, publish=True)
    quotes = {worker: new_id() for worker in (first, second)}

    async def quote(worker: str, rev: int) -> Accepted:
        offer = {"quote_id": quotes[worker], "rev": rev, "milestones": LINES, "currency": "CNY"}
        return await town.ask("order", stream, "submit_quote", Actor("user", worker), **offer)

    await quote(first, 1)
    version = (await quote(second, 1)).offset
    await town.ask("order", stream, "accept_quote", Actor("user", customer), version, quote_id=quotes[first], rev=1)
    devices = await town.devices(first, stream)
    readers = [await town.slow_device(first, stream)] if slow else []
    await town.online(devices)
    giving_back = asyncio.create_task(town.ask("order", stream, "cancel", Actor("user", first), reason="ill"))
    await asyncio.sleep(0)
    at_once = [asyncio.create_task(quote(second, rev)) for rev in (2, 3)]
    reopened = await giving_back
    at_s = perf_counter()
    newest = max((await asyncio.gather(*at_once)), key=lambda answer: answer.offset)
    chosen = {"quote_id": quotes[second], "rev": 3}
    await town.ask("order", stream, "accept_quote", Actor("user", customer), newest.offset, **chosen)
    return Case("order.reopened", stream, [item.name for item in [*devices, *readers]], reopened.offset, at_s)


async def logged_out(town: Town, slow: bool) -> Case:
    """Somebody's device sessions are revoked: as soon as they are closed nothing comes, and they do not come back."""
    owner, owner_of_devices = str(uuid_utils.uuid7()), str(uuid_utils.uuid7())
    stream = await town.room(owner, owner_of_devices)
    devices = await town.devices(owner_of_devices, stream)
    readers = [await town.slow_device(owner_of_devices, stream)] if slow else []
    await town.online(devices)
    await town.say(stream, owner, BEFORE)
    ids = [session.id for session in await town.sessions.list_of(owner_of_devices)]
    await town.sessions.revoke(ids, SystemClock().now_ms())
    for each in ids:
        await town.broker.publish(REVOKED_SUBJECT, each.encode())
    at_s = perf_counter()
    async with asyncio.timeout(10.0):
        while any(device.online for device in devices):
            await asyncio.sleep(0.005)
    last = (await town.ask("conversation", stream, "send", Actor("user", owner), text="goodbye")).offset - 1
    await town.say(stream, owner, AFTER)
    return Case("session revoked", stream, [item.name for item in [*devices, *readers]], last, at_s)


KINDS: dict[str, Callable[[Town, bool], Awaitable[Case]]] = {
    "member.remove": removed,
    "leave": left,
    "order.reopened": replaced,
    "session revoked": logged_out,
}


@pytest.mark.catalogue("REVOKED", "who may not read any more gets nothing any more")
@pytest.mark.timeout(600)
async def test_nothing_that_was_committed_later_reaches_who_may_not_read_any_more(
    chaos: Chaos, houses: Houses, tmp_store: str
):
    each = chaos.choose(short=3, full=13)
    chaos.load(f"{len(KINDS) * each} cases, {DEVICES} devices each on two gateways, one slow reader for each kind")
    parts = await houses.build(tmp_store, hosts=2, gateways=2)
    crowd: Crowd = await houses.enter(Crowd(parts, window=32))
    town: Town = await houses.enter(Town(parts, crowd))
    cases = []
    for kind, happens in KINDS.items():
        for number in range(each):
            cases.append(await happens(town, number == 0))
            chaos.tell(f"{kind}, {len(cases)} cases")

    for reader in town.slow:
        reader.bytes_per_s = None
    await asyncio.sleep(chaos.seconds(short=2.0, full=5.0))

    shown = crowd.evidence.shown
    late = [
        f"{case.kind}: {device} was shown {item.offset} {item.what}; {case.last} was to be the last of {case.stream}"
        for case in cases
        for device in case.devices
        for item in shown.get((device, case.stream), ())
        if item.offset > case.last
    ]
    quick = [
        shown[device, case.stream][-1].at_s - case.at_s
        for case in cases
        for device in case.devices
        if not device.endswith("slow") and shown.get((device, case.stream))
    ]
    by_kind = {kind: sum(text.startswith(f"{kind}:") for text in late) for kind in KINDS}
    chaos.record(cases=len(cases), leaked=len(late), by_kind=by_kind, last_shown=spread([max(0.0, s) for s in quick]))
    assert quick, "they were shown what came before"
    assert not late, "\n".join(late[:20])
    if chaos.full:
        assert max(quick) <= LATE_S
