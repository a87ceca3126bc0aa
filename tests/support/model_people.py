"""People with devices, on any platform: what they do, and whether all their devices show what a fresh fetch says.

A device is the platform's own client (`gateway.client.Client`) with its outbox. A `World` is where it lives: in virtual time or
among real processes. What people did is written down as it is asked for; `Room`s are folded from that, in the order of the
log's offsets, and both the devices and the REST API must agree with them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import msgspec

from domain.chat_view import View, message_json, unread
from domain.errors import Refusal
from gateway.client import Client, ClientEnded
from gateway.client_feed import Feed, Folding
from gateway.client_store import MemoryOutbox
from gateway.client_views import FOLDS
from gateway.client_writes import Pending
from tests.support.model_rooms import ALLOWED, NOTHING, SECRETS, TYPES, Did, Room, happen, shown, verdict, without_times

FOLLOW_S: Final = 0.1
"""How often an app looks whether there are conversations that it does not follow."""


class Entry(msgspec.Struct, frozen=True):
    """A row of a conversation's log."""

    offset: int
    type: str
    command_id: str | None
    body: dict[str, Any]


class Broken(AssertionError):
    """A promise is broken; the text says which, and what had happened."""


class World(Protocol):
    """Where devices live. Faults are the machine's business, this is what the judge needs."""

    folds: Mapping[str, Folding]
    outbox: Callable[[], MemoryOutbox]
    patience_s: float

    def now_s(self) -> float: ...
    def new_id(self) -> str: ...
    def client(self, device: "Device") -> Client:
        """A client of the device, not entered yet."""
        ...

    async def inside(self, device: "Device", work: Callable[[], Awaitable[Any]]) -> Any:
        """Do that in the device's process."""
        ...

    async def rest(self, user: str, method: str, path: str, body: Any = None) -> tuple[int, Any]: ...
    async def log(self, room: str, after: int) -> list[Entry]:
        """What the log has of a conversation."""
        ...

    def errors(self) -> list[str]:
        """What the platform has logged as an error."""
        ...


class Write:
    """Something a person has done on a device. `answer`: None, the refusal's code, or the offset."""

    def __init__(self, device: "Device", room: str, did: Did) -> None:
        self.device = device
        self.room = room
        self.did = did
        self.answer: str | int | None = None
        self.judged = self.counted = False
        self.lost = False
        """The device has lost it before it was answered: it may have landed or not."""

    def __str__(self) -> str:
        said = {name: value for name, value in self.did.fields.items() if name not in ("conversation_id", "id")}
        return f"{self.device.name} {self.did.method} {said} (write {self.did.id[-6:]}, answer {self.answer})"


class Device:
    """One device of a user. `open`: its app runs; `reachable`: it has a network."""

    def __init__(self, world: World, user: str, name: str, session: str) -> None:
        self.world = world
        self.user = user
        self.name = name
        self.session = session
        self.outbox = self.world.outbox()
        self.client: Client | None = None
        self.reachable = True
        self.life = 0
        self.receipts: set[tuple[str, str, int]] = set()
        self.writes: list[Write] = []
        self.hinted: dict[str, None] = {}
        self.task: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        self._watching: set[asyncio.Task[None]] = set()

    @property
    def on(self) -> bool:
        return self.client is not None and self.reachable

    # --- its app -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Within its process."""
        self.life += 1
        self._end = asyncio.Event()
        entered = asyncio.Event()
        self.task = asyncio.create_task(self._live(entered))
        await entered.wait()

    async def _live(self, entered: asyncio.Event) -> None:
        client = await self.world.client(self).__aenter__()
        self.client = client
        self._resume(client)
        entered.set()
        heads = None
        while not self._end.is_set():
            if client.heads is not None and client.heads is not heads:
                heads = client.heads
                self.hinted.update(dict.fromkeys(head.id for head in heads.conversations))
            for room in self.hinted:
                client.follow(f"conversation:{room}")
            self.hinted.clear()
            await asyncio.sleep(FOLLOW_S)
        await client.close()  # not in a `finally`: an app that is killed does not get that far

    def _resume(self, client: Client) -> None:
        """What waited in the outbox is waited for again; what is not there any more is lost."""
        kept = {pending.id: pending for pending in client.waiting}
        for write in self.writes:
            if write.answer is None and write.did.id in kept:
                self._watch(write, kept[write.did.id])
            elif write.answer is None:
                write.lost = True

    def hint(self, hint: dict[str, Any]) -> None:
        if hint["type"] == "conversation.activity":
            self.hinted[hint["conversation_id"]] = None

    async def stop(self) -> None:
        """Close the app in an orderly way, within its process."""
        self._end.set()
        if self.task is not None:
            await self.task
        self.client = None

    def gone(self) -> None:
        """Its process is no more."""
        self.client = None

    def wipe(self) -> None:
        """What the device had kept is lost."""
        self.outbox = self.world.outbox()

    # --- what its user does --------------------------------------------------------------------------------------

    async def write(self, write: Write) -> None:
        assert self.client is not None
        self.writes.append(write)
        did = write.did
        fields = {"conversation_id": write.room, "id": did.id, **did.fields}
        self._watch(write, self.client.write(did.method, f"conversation:{write.room}", did.id, fields))

    def _watch(self, write: Write, pending: Pending[Any]) -> None:
        async def wait() -> None:
            try:
                write.answer = (await pending).offset
            except Refusal as refusal:
                write.answer = refusal.code.value
            except ClientEnded:
                pass

        task = asyncio.create_task(wait())
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def receipt(self, room: str, method: str, offset: int) -> None:
        assert self.client is not None
        self.receipts.add((room, method, offset))
        conversation = self.client.conversation(room)
        (conversation.read if method == "receipt.read" else conversation.delivered)(offset)

    # --- what it shows -------------------------------------------------------------------------------------------

    def feed(self, room: str) -> Feed | None:
        """The conversation as it is followed now."""
        assert self.client is not None
        feed = self.client._feeds.get(f"conversation:{room}")
        return feed if feed is not None and feed.ended is None else None

    def restless(self, rooms: Mapping[str, Room]) -> str:
        """What it waits for; empty when it has everything."""
        client = self.client
        assert client is not None
        if client._error is not None:
            return f"has ended: {client._error!r}"
        if not client._core.online:
            return "is not connected"
        if client._core.unsettled:
            return f"has {client._core.unsettled} writes without an answer"
        for room in rooms.values():
            feed = self.feed(room.id)
            if self.user not in room.seats:
                if feed is not None:
                    return f"still follows {room.id}, and is no member"
            elif feed is None:
                return f"does not follow {room.id}"
            elif feed.position is None or feed.position.offset != room.version:
                return f"is at {feed.position} of {room.id}, which ends at {room.version}"
        return ""


class People:
    """Everybody, their conversations as they must be, and the judge."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.devices: list[Device] = []
        self.users: list[str] = []
        self.rooms: dict[str, Room] = {}
        self.names: dict[str, str] = {}
        """Of users and rooms, for people to read."""
        self.sent: dict[str, list[str]] = {}
        """Messages by room, as they were sent."""
        self.writes: dict[str, Write] = {}
        self.system: dict[str, Did] = {}
        self.blocks: set[tuple[str, str]] = set()
        self.toggled: set[tuple[str, str, bool]] = set()
        self.story: list[str] = []
        self.landed: dict[str, int] = {}
        """Where each write stands in its log."""
        self.past: dict[str, list[Room]] = {}
        """By room: how it was at the beginning of this step and after each event of it."""

    def tell(self, what: str) -> None:
        for identifier, name in self.names.items():
            what = what.replace(identifier, name)
        self.story.append(f"{self.world.now_s():8.2f} {what}")

    def broken(self, what: str) -> Broken:
        for identifier, name in self.names.items():
            what = what.replace(identifier, name)
        return Broken("\n".join([what, "", "What had happened:", *self.story]))

    async def write(self, device: Device, room: str, method: str, **fields: Any) -> Write:
        write = Write(device, room, Did(device.user, method, fields, self.world.new_id()))
        self.writes[write.did.id] = write
        if method == "message.send":
            self.sent[room].append(write.did.id)
            self.names[write.did.id] = f"<message {len(self.sent[room])} of {self.names[room]}>"
        self.tell(str(write))
        await self.world.inside(device, lambda: device.write(write))
        return write

    def hidden(self) -> bool:
        """Whether there is something to be revealed."""
        return any(said.masked and not room.revealed for room in self.rooms.values() for said in room.said.values())

    def news(self) -> list[Write]:
        """Those that were answered since this was asked last."""
        found = [write for write in self.writes.values() if write.answer is not None and not write.counted]
        for write in found:
            write.counted = True
        return found

    # --- coming to rest ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before a step."""
        self.past = {room.id: [room.copy()] for room in self.rooms.values()}

    async def settle(self) -> None:
        """Wait until everything is quiet; not for ever."""
        until_s = self.world.now_s() + self.world.patience_s
        while True:
            for room in self.rooms.values():
                await self._fold(room)
            restless = {d.name: why for d in self.devices if d.on and (why := d.restless(self.rooms))}
            if not restless:
                return
            if self.world.now_s() > until_s:
                told = "; ".join(f"{name} {why}" for name, why in restless.items())
                raise self.broken(f"not quiet after {self.world.patience_s:g} s: {told}")
            await asyncio.sleep(0.05)

    async def _fold(self, room: Room) -> None:
        for entry in await self.world.log(room.id, room.version):
            if entry.offset != room.version + 1:
                raise self.broken(f"{room.id} has {entry.offset} after {room.version}")
            did = self._explained(room, entry)
            if did.id in self.writes:
                write = self.writes[did.id]
                if why := verdict(room, did, frozenset(self.blocks)):
                    raise self.broken(f"landed at {room.id}#{entry.offset}, and the answer should be {why!r}: {write}")
                if write.judged:
                    raise self.broken(f"landed twice: {write}")
                write.judged, self.landed[did.id] = True, entry.offset
            happen(room, entry.offset, did)
            self.past.setdefault(room.id, []).append(room.copy())

    def _explained(self, room: Room, entry: Entry) -> Did:
        """What was done to make that entry. Nothing happens by itself, and only cards and openings have no write."""
        body = entry.body
        did: Did | None = None
        if entry.type.startswith("receipt."):
            return self._receipt(room, entry)
        if entry.command_id in self.writes and self.writes[entry.command_id].room == room.id:
            did = self.writes[entry.command_id].did
        elif entry.command_id in self.system:
            did = self.system[entry.command_id]
        elif entry.type == "member.joined" and entry.offset <= len(self.users) and not room.said:
            return Did(body["by"].removeprefix("system:"), "open", {"user_id": body["user_id"]})
        elif entry.type == "member.blocked" and (body["by"], body["user_id"], body["on"]) in self.toggled:
            return Did(body["by"], "member.block", {"user_id": body["user_id"], "on": body["on"]})
        elif entry.type == "message.revealed" and room.revealed and room.said[body["message_id"]].masked:
            return Did("system", "reveal.one", {"message_id": body["message_id"]})
        if did is None or TYPES[did.method] != entry.type:
            raise self.broken(f"nobody has done what stands at {room.id}#{entry.offset}: {entry}")
        if did.method == "open":
            return Did(body["by"], "open", {"user_id": body["user_id"]})
        return did

    def _receipt(self, room: Room, entry: Entry) -> Did:
        body = entry.body
        offset = body["device_offset"]
        device = next((d for d in self.devices if d.session == body["device"]), None)
        if device is None or device.user != body["by"] or (room.id, entry.type, offset) not in device.receipts:
            raise self.broken(f"nobody has left the receipt {room.id}#{entry.offset}: {entry}")
        return Did(body["by"], entry.type, {"offset": offset})

    # --- judging -------------------------------------------------------------------------------------------------

    async def rest(self) -> None:
        """Wait until everything is quiet, and judge it: what was answered is so, and everybody sees what a fresh fetch says."""
        while True:
            await self.settle()
            try:
                await self._judge()
            except Broken:
                # What a killed app had sent may land at any moment, and then things were compared across it.
                if not await self._moved():
                    raise
            else:
                return

    async def _moved(self) -> bool:
        return any([await self.world.log(room.id, room.version) for room in self.rooms.values()])

    async def _judge(self) -> None:
        for write in self.writes.values():
            self._answered(write)
        for errors in self.world.errors():
            raise self.broken(f"logged as an error: {errors}")
        for user in self.users:
            await self._sees(user)

    def _answered(self, write: Write) -> None:
        did, landed = write.did, self.landed.get(write.did.id)
        if write.answer is None:
            if write.device.on and not write.lost:
                raise self.broken(f"was never answered: {write}")
        elif landed is not None:
            if write.answer != landed:
                raise self.broken(f"landed at {landed} alone: {write}")
        elif not write.judged:
            write.judged = True
            expected = NOTHING if isinstance(write.answer, int) else write.answer
            possible = [verdict(past, did, frozenset(self.blocks)) for past in self.past[write.room]]
            if expected not in possible:
                told = ", ".join(repr(found) for found in dict.fromkeys(possible))
                raise self.broken(f"did not land, and should have been answered {told}: {write}")

    async def _sees(self, user: str) -> None:
        page = await self._get(user, "/v1/conversations")
        listed = {item["id"]: item for item in page["items"]}
        mine = {room.id for room in self.rooms.values() if user in room.seats}
        if listed.keys() & self.rooms.keys() != mine:
            raise self.broken(f"{user} is shown {sorted(listed)}, and is a member of {sorted(mine)}")
        devices = [device for device in self.devices if device.user == user and device.on]
        for room in self.rooms.values():
            if user in room.seats:
                details = await self._get(user, f"/v1/conversations/{room.id}")
                messages = (await self._get(user, f"/v1/conversations/{room.id}/messages?after=0&limit=200"))["items"]
                self._same(
                    f"a fetch by {user} of {room.id}", _fetched(listed[room.id], details, messages), _made(room, user)
                )
                for device in devices:
                    self._compare(device, room, listed[room.id], details, messages)
            else:
                status, _ = await self._ask(user, f"/v1/conversations/{room.id}/messages")
                if status != 404:
                    raise self.broken(f"{user} is no member of {room.id}, and is answered {status}")
        for device in devices:
            await self._heads(device, listed)

    async def _get(self, user: str, path: str) -> Any:
        status, body = await self._ask(user, path)
        if status != 200:
            raise self.broken(f"GET {path} by {user}: {status} {body}")
        return body

    async def _ask(self, user: str, path: str) -> tuple[int, Any]:
        """The answer; where the platform asks to try again, as while a host is replaced, that of a later attempt."""
        until_s = self.world.now_s() + self.world.patience_s
        while True:
            status, body = await self.world.rest(user, "GET", path)
            if status != 503 or self.world.now_s() > until_s:
                return status, body
            await asyncio.sleep(0.1)

    async def _heads(self, device: Device, listed: Mapping[str, Any]) -> None:
        client = device.client
        assert client is not None
        heads = await self.world.inside(device, client.sync)
        told = {
            head.id: {"offset": head.offset, "read": head.read_offset, "unread": head.unread}
            for head in heads.conversations
        }
        fetched = {
            room: {"offset": item["offset"], "read": item["read_offset"], "unread": item["unread"]}
            for room, item in listed.items()
        }  # fmt: skip
        self._same(f"what `sync` tells {device.name}", told, fetched)

    def _compare(
        self, device: Device, room: Room, listed: Mapping[str, Any], details: Mapping[str, Any], messages: list[Any]
    ) -> None:
        feed = device.feed(room.id)
        assert feed is not None
        view: View = feed.view
        seat = view.members.get(device.user)
        if seat is None:
            raise self.broken(f"{device.name} does not know that it is in {room.id}")
        folded = {
            "offset": view.offset,
            "members": list(view.members),
            "read_offset": seat.read_offset,
            "delivered_offset": seat.delivered_offset,
            "watermarks": [_watermark(user, member) for user, member in view.members.items()],
            "order": view.order_id is not None,
            "unread": unread(view, device.user),
            "messages": [message_json(message) for message in view.messages.values()],
            "blocks": sorted((by, user) for by, named in view.blocks.items() for user in named),
        }
        fetched = {
            **{name: details[name] for name in ("offset", "members", "read_offset", "delivered_offset", "watermarks")},
            "order": "order_id" in details,
            "unread": listed["unread"],
            "messages": [_as_others_see_it(message) for message in messages],
            "blocks": sorted(room.blocks),
        }
        self._same(f"what {device.name} shows of {room.id}", folded, fetched)

    def _same(self, what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        for name, there, due in _differences(found, expected):
            raise self.broken(f"{what} has another {name}:\n  {there}\ninstead of\n  {due}")


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in expected:
        there, due = found.get(name), expected[name]
        if there == due:
            continue
        if isinstance(due, list) and isinstance(there, list):
            pairs = [pair for pair in zip(there, due, strict=False) if pair[0] != pair[1]]
            if pairs:
                there, due = pairs[0]
        yield name, there, due
    if found.keys() - expected.keys():
        yield "set of things", sorted(found), sorted(expected)


def _watermark(user: str, member: Any) -> dict[str, Any]:
    devices = [
        {"device": device, "read_offset": read, "delivered_offset": delivered}
        for device, (read, delivered) in member.devices.items()
    ]
    return {
        "user_id": user,
        "read_offset": member.read_offset,
        "delivered_offset": member.delivered_offset,
        "devices": devices,
    }


def _as_others_see_it(message: Mapping[str, Any]) -> dict[str, Any]:
    """Of what hides contact details its author alone is shown the original."""
    text = message.get("text")
    return {**message, "text": SECRETS[text][0]} if "masked" in message and text in SECRETS else dict(message)


def _fetched(listed: Mapping[str, Any], details: Mapping[str, Any], messages: list[Any]) -> dict[str, Any]:
    last = listed["last_message"]
    return {
        "offset": [listed["offset"], details["offset"]],
        "members": [list(listed["members"]), list(details["members"])],
        "marks": [[each["user_id"], each["read_offset"], each["delivered_offset"]] for each in details["watermarks"]],
        "unread": [listed["unread"], details["unread"]],
        "messages": [without_times(message) for message in messages],
        "edited": [message["message_id"] for message in messages if "edited_at" in message],
        "last": None if last is None else [last["message_id"], last.get("text"), "deleted_at" in last, "text" in last],
    }


def _made(room: Room, user: str) -> dict[str, Any]:
    newest = next(reversed(room.said.values()), None)
    last = None if newest is None else shown(room, newest, user)
    members, unseen = list(room.seats), room.unread(user)
    return {
        "offset": [room.version, room.version],
        "members": [members, members],
        "marks": [[each, seat.read, seat.delivered] for each, seat in room.seats.items()],
        "unread": [unseen, unseen],
        "messages": [shown(room, said, user) for said in room.said.values()],
        "edited": [said.id for said in room.said.values() if said.edited and not said.deleted],
        "last": None if last is None else [last["message_id"], last.get("text"), "deleted" in last, "text" in last],
    }


__all__ = ["ALLOWED", "FOLDS", "Broken", "Device", "Entry", "People", "World", "Write"]
