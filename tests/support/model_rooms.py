"""What a conversation must look like after some writes: a small model, written from the protocol and not from the code.

A `Room` is folded from what people did, in the order of the offsets that it got: `Did` is what was asked for, not what the
platform made of it. `verdict` says what becomes of a write in a room as it stands.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

ALLOWED: Final = ""
NOTHING: Final = "no effect"
"""The answer is positive, and nothing happens."""
SAYING: Final = frozenset({"message.send", "message.edit", "message.react", "member.add"})
SEATS: Final = frozenset({"member.add", "member.remove", "conversation.leave"})
TYPES: Final = {
    "open": "member.joined",
    "message.send": "message.posted",
    "message.edit": "message.edited",
    "message.delete": "message.deleted",
    "message.react": "message.reacted",
    "member.add": "member.joined",
    "member.remove": "member.left",
    "conversation.leave": "member.left",
    "contacts.reveal": "contacts.revealed",
}
"""Which event each write makes."""
SECRETS: Final = {
    "call me on 13812345678": ("call me on •••", ["phone"]),
    "mail to ana@example.com": ("mail to •••", ["email"]),
}
"""Texts with contact details: how others read them, and what is hidden in them."""


class Did(msgspec.Struct, frozen=True):
    """Somebody did something. `fields` are those of the protocol's rpc method."""

    by: str
    method: str
    fields: dict[str, Any]
    id: str = ""


class Said(msgspec.Struct):
    """A message. `typed` is what its author wrote."""

    id: str
    by: str
    offset: int
    typed: str
    reply_to: str | None = None
    edited: bool = False
    deleted: bool = False
    masked: bool = False
    reactions: dict[str, list[str]] = {}


class Seat(msgspec.Struct):
    joined: int
    read: int = 0
    delivered: int = 0


class Room(msgspec.Struct):
    """A conversation up to offset `version`."""

    id: str
    order: bool = False
    opened_by: str = ""
    version: int = 0
    revealed: bool = False
    seats: dict[str, Seat] = {}
    said: dict[str, Said] = {}
    blocks: set[tuple[str, str]] = set()
    """(who wants to hear no more, from whom)."""

    def copy(self) -> "Room":
        decoded: Room = msgspec.msgpack.decode(msgspec.msgpack.encode(self), type=Room)
        return decoded

    def silenced(self, user: str) -> bool:
        """Of two members, the other one has blocked the user."""
        return len(self.seats) == 2 and any((other, user) in self.blocks for other in self.seats if other != user)

    def unread(self, user: str) -> int:
        seat = self.seats[user]
        after = max(seat.read, seat.joined)
        others = [said for said in self.said.values() if said.by not in (user, "system")]
        return sum(said.offset > after and not said.deleted for said in others)


def verdict(room: Room, did: Did, blocked: frozenset[tuple[str, str]] = frozenset()) -> str:
    """`ALLOWED`, `NOTHING`, or the code that the write is refused with; `blocked`: who has blocked whom in any room."""
    if did.by not in room.seats:
        return "not_found"
    if did.method in SEATS and room.order:
        return "forbidden"
    if did.method in SAYING and room.silenced(did.by):
        return "forbidden"
    match did.method:
        case "message.send":
            reply_to = did.fields.get("reply_to")
            return "invalid" if reply_to is not None and reply_to not in room.said else ALLOWED
        case "message.edit" | "message.delete" | "message.react":
            return _about(room.said.get(did.fields["message_id"]), did)
        case "member.add":
            if did.fields["user_id"] in room.seats:
                return NOTHING
            return "forbidden" if (did.fields["user_id"], did.by) in blocked else ALLOWED
        case "member.remove":
            if did.fields["user_id"] not in room.seats:
                return NOTHING
            return ALLOWED if did.by in (did.fields["user_id"], room.opened_by) else "forbidden"
    return ALLOWED


def _about(said: Said | None, did: Did) -> str:
    if said is None:
        return "not_found"
    if did.method != "message.react" and said.by != did.by:
        return "forbidden"
    if said.deleted:
        return NOTHING if did.method == "message.delete" else "conflict"
    return ALLOWED


def happen(room: Room, offset: int, did: Did) -> None:
    """What was done has got this offset."""
    room.version = offset
    fields = did.fields
    match did.method:
        case "open":
            room.opened_by = room.opened_by or did.by
            room.seats[fields["user_id"]] = Seat(offset)
        case "member.add":
            room.seats[fields["user_id"]] = Seat(offset)
        case "member.remove":
            _go(room, fields["user_id"])
        case "conversation.leave":
            _go(room, did.by)
        case "member.block":
            _block(room, did.by, fields["user_id"], on=fields["on"])
        case "contacts.reveal":
            room.revealed = True
        case "reveal.one":
            room.said[fields["message_id"]].masked = False
        case "receipt.read":
            seat = room.seats[did.by]
            seat.read = max(seat.read, fields["offset"])
        case "receipt.delivered":
            seat = room.seats[did.by]
            seat.delivered = max(seat.delivered, fields["offset"])
        case _:
            _message(room, offset, did)


def _go(room: Room, user: str) -> None:
    del room.seats[user]
    room.blocks = {pair for pair in room.blocks if user not in pair}


def _block(room: Room, by: str, user: str, *, on: bool) -> None:
    (room.blocks.add if on else room.blocks.discard)((by, user))


def _message(room: Room, offset: int, did: Did) -> None:
    fields = did.fields
    if did.method == "message.send":
        hidden = _hidden(room, fields["text"])
        room.said[did.id] = Said(did.id, did.by, offset, fields["text"], fields.get("reply_to"), masked=hidden)
        return
    said = room.said[fields["message_id"]]
    if did.method == "message.edit":
        said.typed, said.edited, said.masked = fields["text"], True, _hidden(room, fields["text"])
    elif did.method == "message.delete":
        said.deleted, said.reactions = True, {}
    else:
        users = [user for user in said.reactions.pop(fields["emoji"], []) if user != did.by]
        if fields["on"]:
            users.append(did.by)
        if users:
            said.reactions[fields["emoji"]] = users


def _hidden(room: Room, text: str) -> bool:
    return room.order and not room.revealed and text in SECRETS


def shown(room: Room, said: Said, viewer: str) -> dict[str, Any]:
    """The message as `GET …/messages` shows it to the viewer, times aside."""
    view: dict[str, Any] = {"message_id": said.id, "by": said.by, "offset": said.offset}
    if said.deleted:
        return view | {"deleted": True}
    view["text"] = said.typed
    if said.masked and not room.revealed:
        text, view["masked"] = SECRETS[said.typed]
        view["text"] = said.typed if viewer == said.by else text
    if said.reply_to is not None:
        view["reply_to"] = said.reply_to
    if said.reactions:
        view["reactions"] = said.reactions
    return view


def without_times(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name not in ("at", "edited_at", "deleted_at")}


Role = Literal["host", "gateway"]
