"""The state machine: random acts of people and of misfortune, and after each of them everybody sees the same.

An act is a struct, so that a failing example prints itself as the code that does it again. Acts are done one by one, or several
within a moment (`meanwhile`), so that writes, disconnects and kills meet one another under way.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.model_people import Device, People
from tests.support.model_rooms import SECRETS, Did, Role, Room

TEXTS: Final = ("hello", "on my way", "see you at nine", *SECRETS)
EMOJI: Final = ("\N{THUMBS UP SIGN}", "\N{PARTY POPPER}")
ROOMS: Final = ("pair", "group", "order")


class Act(msgspec.Struct, frozen=True):
    """Something that happens. Devices are those to which it can happen, rooms those of the device's user, messages the latest
    ones of that user; numbers are taken modulo how many there are. Room 3 is anybody's, and so is message 3; message 4 is one
    that nobody knows."""


class Send(Act, frozen=True):
    device: int
    room: int
    text: str
    reply: int | None = None


class Edit(Act, frozen=True):
    device: int
    room: int
    message: int
    text: str


class Delete(Act, frozen=True):
    device: int
    room: int
    message: int


class React(Act, frozen=True):
    device: int
    room: int
    message: int
    emoji: str
    on: bool


class Receipt(Act, frozen=True):
    """Everything that the device has was read or delivered, or all of it but the last `short` events."""

    device: int
    room: int
    read: bool
    short: int


class Seat(Act, frozen=True):
    """A device's user makes another one a member, or takes them out."""

    device: int
    room: int
    user: int
    on: bool


class Leave(Act, frozen=True):
    device: int
    room: int


class Block(Act, frozen=True):
    user: int
    other: int
    on: bool


class Reveal(Act, frozen=True):
    """The order has come so far that contact details are hidden no more."""


class Unplug(Act, frozen=True):
    """A device loses its network; its gateway notices, or does not."""

    device: int
    noticed: bool


class Plug(Act, frozen=True):
    device: int


class Close(Act, frozen=True):
    """A device's app is closed, or killed."""

    device: int
    crash: bool


class Open(Act, frozen=True):
    """A device's app is opened again: where it was, or with nothing."""

    device: int
    scratch: bool


class Kill(Act, frozen=True):
    """Number 2: all of them."""

    role: Role
    number: int
    back_s: float


class Drain(Act, frozen=True):
    role: Role
    number: int
    back_s: float


class Away(Act, frozen=True):
    """The broker or the database is away for a while."""

    what: str
    for_s: float


class Wait(Act, frozen=True):
    for_s: float


ALL: Final = 2
small = st.integers(0, 5)
device, room, message = st.integers(0, 8), st.integers(0, 3), st.integers(0, 4)
text = st.sampled_from(TEXTS)
seconds = st.sampled_from((0.0, 0.3, 1.0, 4.0))
roles = st.sampled_from(("host", "gateway"))

sends = st.builds(Send, device, room, text, st.none() | message)
edits = st.builds(Edit, device, room, message, text)
deletes = st.builds(Delete, device, room, message)
reacts = st.builds(React, device, room, message, st.sampled_from(EMOJI), st.booleans())
receipts = st.builds(Receipt, device, room, st.booleans(), st.integers(0, 3))
seats = st.builds(Seat, device, room, small, st.sampled_from((True, True, False)))
leaves = st.builds(Leave, device, room)
unplugs = st.builds(Unplug, device, st.booleans())
plugs = st.builds(Plug, device)
closes = st.builds(Close, device, st.booleans())
opens = st.builds(Open, device, st.booleans())
kills = st.builds(Kill, roles, st.integers(0, ALL), seconds)
drains = st.builds(Drain, roles, st.integers(0, 1), seconds)
aways = st.builds(Away, st.sampled_from(("broker", "store")), st.sampled_from((0.1, 1.0, 4.0)))
blocks = st.builds(Block, small, small, st.booleans())
waits = st.builds(Wait, st.sampled_from((0.5, 3.0, 3.0, 40.0)))
talk = sends | sends | sends | edits | edits | deletes | reacts | reacts | receipts | receipts | seats | leaves
trouble = unplugs | plugs | closes | opens | kills | drains | aways
moments = st.tuples(st.sampled_from((0, 5, 20, 60, 300)), talk | talk | talk | trouble)


def _one_of(devices: list[Device], number: int) -> Device | None:
    return devices[number % len(devices)] if devices else None


class Conversations(RuleBasedStateMachine):
    """`world` is made for each example by `make(tight)`."""

    make: ClassVar[Callable[[bool], Any]]
    counts: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.world: Any = None
        self.quiet = True

    @initialize(
        devices=st.lists(st.integers(1, 3), min_size=2, max_size=3),
        rooms=st.sets(st.sampled_from(ROOMS), min_size=1),
        tight=st.booleans(),
    )
    def begin(self, devices: list[int], rooms: set[str], tight: bool) -> None:
        """`devices`: how many each user has."""
        self.world = type(self).make(tight)
        self.people = People(self.world)
        self._count("examples")
        self.run(self._move_in(devices, [name for name in ROOMS if name in rooms]))

    def run(self, work: Any) -> Any:
        return self.world.run(work)

    async def _move_in(self, devices: list[int], rooms: list[str]) -> None:
        people, world = self.people, self.world
        for name, count in zip(("ana", "bob", "cid"), devices, strict=False):
            user = await world.new_user()
            people.users.append(user)
            people.names[user] = name
            for number in range(1, count + 1):
                made: Device = await world.device(user, f"{name}-{number}")
                people.devices.append(made)
                people.names[made.session] = f"<session {made.name}>"
        for name in rooms:
            members = people.users if name == "group" else people.users[:2]
            identifier = world.new_id()
            people.names[identifier] = name
            people.rooms[identifier] = Room(identifier, order=name == "order")
            people.sent[identifier] = []
            if name == "order":
                await world.system(identifier, "open", {"member_ids": members, "order_id": world.new_id()}, identifier)
            else:
                await self._opened(identifier, members)
        for made in people.devices:
            await world.inside(made, made.start)
        people.begin()
        self.quiet = False

    async def _opened(self, identifier: str, members: list[str]) -> None:
        status = 503
        while status == 503:
            body = {"id": identifier, "member_ids": members}
            status, answer = await self.world.rest(members[0], "POST", "/v1/conversations", body)
        assert status == 201, answer

    # --- acting --------------------------------------------------------------------------------------------------

    def act(self, *acts: tuple[int, Act]) -> None:
        """Do each of them so many milliseconds after the one before."""
        self.people.begin()
        self.quiet = False
        self.run(self._act(acts))

    async def _act(self, acts: tuple[tuple[int, Act], ...]) -> None:
        for after_ms, act in acts:
            if after_ms:
                await asyncio.sleep(after_ms / 1000)
            self._count(type(act).__name__)
            await getattr(self, f"_{type(act).__name__.lower()}")(act)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _open_device(self, number: int) -> Device | None:
        return _one_of([device for device in self.people.devices if device.client is not None], number)

    def _room(self, number: int, device: Device) -> Room:
        """One of the user's; with number 3, or where there is none, any."""
        rooms = list(self.people.rooms.values())
        mine = [room for room in rooms if device.user in room.seats]
        if number == 3 or not mine:
            mine = rooms
        return mine[number % len(mine)]

    def _message(self, room: Room, number: int, by: str = "") -> str:
        """One of the latest three, by that user; 3: anybody's; 4, or where there is none: one that nobody knows."""
        sent = self.people.sent[room.id]
        if number < 3 and by:
            sent = [message for message in sent if self.people.writes[message].did.by == by]
        return sent[-1 - number % min(3, len(sent))] if number < 4 and sent else self.world.new_id()

    async def _write(self, act: Any, method: str, fields: Callable[[Room], dict[str, Any]]) -> None:
        device = self._open_device(act.device)
        if device is None:
            return
        room = self._room(act.room, device)
        await self.people.write(device, room.id, method, **fields(room))

    async def _send(self, act: Send) -> None:
        def fields(room: Room) -> dict[str, Any]:
            return {"text": act.text} | ({} if act.reply is None else {"reply_to": self._message(room, act.reply)})

        await self._write(act, "message.send", fields)

    async def _about(self, act: Any, method: str, **fields: Any) -> None:
        """Do something to a message; to a new one where the user has none there."""
        device = self._open_device(act.device)
        if device is None:
            return
        room = self._room(act.room, device)
        by = "" if method == "message.react" else device.user
        wanted = self._message(room, act.message, by)
        if act.message < 4 and wanted not in self.people.writes:
            wanted = (await self.people.write(device, room.id, "message.send", text="first of all")).did.id
        await self.people.write(device, room.id, method, message_id=wanted, **fields)

    async def _edit(self, act: Edit) -> None:
        await self._about(act, "message.edit", text=act.text)

    async def _delete(self, act: Delete) -> None:
        await self._about(act, "message.delete")

    async def _react(self, act: React) -> None:
        """What is taken back is one of the user's own reactions, if there are any and the act does not name message 3 or 4."""
        device = self._open_device(act.device)
        room = self._room(act.room, device) if device is not None else None
        if device is not None and room is not None and not act.on and act.message < 3:
            own = [
                (said.id, emoji)
                for said in room.said.values()
                for emoji in said.reactions
                if device.user in said.reactions[emoji]
            ]
            if own:
                wanted, emoji = own[act.message % len(own)]
                await self.people.write(device, room.id, "message.react", message_id=wanted, emoji=emoji, on=False)
                return
        await self._about(act, "message.react", emoji=act.emoji, on=act.on)

    async def _receipt(self, act: Receipt) -> None:
        device = self._open_device(act.device)
        if device is None:
            return
        room = self._room(act.room, device)
        feed = device.feed(room.id)
        offset = feed.position.offset - act.short if feed is not None and feed.position is not None else 0
        if offset > 0:
            method = "receipt.read" if act.read else "receipt.delivered"
            self.people.tell(f"{device.name} {method} {room.id} up to {offset}")
            await self.world.inside(device, lambda: device.receipt(room.id, method, offset))

    async def _seat(self, act: Seat) -> None:
        user = self.people.users[act.user % len(self.people.users)]
        await self._write(act, "member.add" if act.on else "member.remove", lambda room: {"user_id": user})

    async def _leave(self, act: Leave) -> None:
        await self._write(act, "conversation.leave", lambda room: {})

    async def _block(self, act: Block) -> None:
        people = self.people
        user, other = people.users[act.user % len(people.users)], people.users[act.other % len(people.users)]
        if user == other:
            return
        people.tell(f"{user} {'blocks' if act.on else 'unblocks'} {other}")
        people.toggled.add((user, other, act.on))
        (people.blocks.add if act.on else people.blocks.discard)((user, other))
        status = 503
        while status == 503:
            status, answer = await self.world.rest(user, "PUT" if act.on else "DELETE", f"/v1/blocks/{other}")
        if status not in (200, 204):
            raise people.broken(f"a block was answered {status} {answer}")
        await people.settle()
        for room in people.rooms.values():
            alone = all(past.seats.keys() == {user, other} for past in people.past[room.id])
            if alone and ((user, other) in room.blocks) != act.on:
                raise people.broken(f"{room.id} does not know of it")

    async def _reveal(self, act: Reveal) -> None:
        for room in self.people.rooms.values():
            if room.order:
                identifier = self.world.new_id()
                self.people.tell("contact details are revealed")
                self.people.system[identifier] = Did("system", "contacts.reveal", {}, identifier)
                await self.world.system(room.id, "contacts.reveal", {}, identifier)

    async def _unplug(self, act: Unplug) -> None:
        device = _one_of([device for device in self.people.devices if device.reachable], act.device)
        if device is None:
            return
        self.people.tell(f"{device.name} loses its network")
        device.reachable = False
        await self.world.unplug(device, act.noticed)

    async def _plug(self, act: Plug) -> None:
        device = _one_of([device for device in self.people.devices if not device.reachable], act.device)
        if device is not None:
            self.people.tell(f"{device.name} has a network")
            device.reachable = True

    async def _close(self, act: Close) -> None:
        device = self._open_device(act.device)
        if device is None:
            return
        self.people.tell(f"{device.name} is {'killed' if act.crash else 'closed'}")
        if act.crash:
            await self.world.crash(device)
        else:
            await self.world.inside(device, device.stop)

    async def _open(self, act: Open) -> None:
        device = _one_of([device for device in self.people.devices if device.client is None], act.device)
        if device is None:
            return
        self.people.tell(f"{device.name} is opened{' with nothing' if act.scratch else ''}")
        if act.scratch:
            device.wipe()
        await self.world.inside(device, device.start)

    async def _kill(self, act: Kill) -> None:
        whom = "all of them" if act.number == ALL else str(act.number)
        self.people.tell(f"{act.role}: {whom} killed, for {act.back_s:g} s")
        for number in (0, 0) if act.number == ALL else (act.number,):
            await self.world.kill(act.role, number, act.back_s)

    async def _drain(self, act: Drain) -> None:
        self.people.tell(f"{act.role} {act.number} is drained")
        await self.world.drain(act.role, act.number, act.back_s)

    async def _away(self, act: Away) -> None:
        self.people.tell(f"the {act.what} is away for {act.for_s:g} s")
        await getattr(self.world, f"{act.what}_away")(act.for_s)

    async def _wait(self, act: Wait) -> None:
        await asyncio.sleep(min(act.for_s, self.world.longest_wait_s))

    # --- what may happen -----------------------------------------------------------------------------------------

    @rule(act=st.builds(Send, device, room, text))
    def send(self, act: Send) -> None:
        self.act((0, act))

    @rule(act=st.builds(Send, device, room, text, message))
    def reply(self, act: Send) -> None:
        self.act((0, act))

    @rule(act=edits)
    def edit(self, act: Edit) -> None:
        self.act((0, act))

    @rule(act=deletes)
    def delete(self, act: Delete) -> None:
        self.act((0, act))

    @rule(act=reacts)
    def react(self, act: React) -> None:
        self.act((0, act))

    @rule(act=receipts)
    def look(self, act: Receipt) -> None:
        self.act((0, act))

    @rule(act=seats | seats | leaves)
    def come_or_go(self, act: Act) -> None:
        self.act((0, act))

    @rule(act=blocks | waits)
    def seldom(self, act: Act) -> None:
        self.act((0, act))

    @precondition(lambda self: self.people.hidden())
    @rule()
    def reveal(self) -> None:
        self.act((0, Reveal()))

    @rule(act=unplugs | closes)
    def go_away(self, act: Act) -> None:
        self.act((0, act))

    @precondition(lambda self: not all(device.on for device in self.people.devices))
    @rule(act=plugs | opens)
    def come_back(self, act: Act) -> None:
        self.act((0, act))

    @rule(act=kills | drains | aways)
    def trouble(self, act: Act) -> None:
        self.act((0, act))

    @rule(acts=st.lists(moments, min_size=2, max_size=7))
    def meanwhile(self, acts: list[tuple[int, Act]]) -> None:
        self.act(*acts)

    # --- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def everybody_sees_the_same(self) -> None:
        if self.world is not None and not self.quiet:
            self.run(self._rest())
            self.quiet = True

    async def _rest(self) -> None:
        await self.world.mended()
        await self.people.rest()
        for write in self.people.news():
            self._count("answered " + ("with an offset" if isinstance(write.answer, int) else str(write.answer)))

    def teardown(self) -> None:
        if self.world is not None:
            self.world.close()
