"""Rows of the log as tests write them."""

from uuid import uuid4

import msgspec

from domain.chat import CHAT, ChatEvent, MemberJoined, MessagePosted
from domain.ports import Entry, Snapshot, Turn
from domain.times import rfc3339

AT = 1_800_000_000_000
HASH = b"0123456789abcdef"


def new_id(partition: int | None = None) -> str:
    """A random UUID, in the given partition."""
    made = uuid4()
    return str(made) if partition is None else str(made)[:-3] + f"{made.int & 0xC00 | partition:03x}"


def conversation(partition: int) -> str:
    return f"conversation:{new_id(partition)}"


def posted(
    stream: str, offset: int, by: str = "u1", text: str = "hello", message_id: str | None = None, at: int = AT
) -> Entry:
    """A message in a conversation."""
    message_id = message_id or new_id()
    body = CHAT.encode_event(MessagePosted(message_id, by, rfc3339(at), text))
    return Entry(stream, offset, "message.posted", message_id, HASH, f"user:{by}", at, body)


def chat_row(stream: str, offset: int, event: ChatEvent, by: str, command_id: str | None = None, at: int = AT) -> Entry:
    """Any event of a conversation, one of a command's unless it is a receipt."""
    kind = CHAT.event_type(event)
    command_hash = None if kind.startswith("receipt.") else HASH
    return Entry(stream, offset, kind, command_id, command_hash, f"user:{by}", at, CHAT.encode_event(event))


def opened(stream: str, *members: str, order_id: str | None = None, at: int = AT) -> list[Entry]:
    """The first events of a conversation: everybody joins."""
    joins = [
        MemberJoined(members[0], rfc3339(at), member, order_id if n == 0 else None) for n, member in enumerate(members)
    ]
    first = new_id()
    return [chat_row(stream, n, join, members[0], first if n == 1 else None, at) for n, join in enumerate(joins, 1)]


def order_row(stream: str, offset: int, kind: str, at: int = AT, **fields: object) -> Entry:
    """An event of an order, with whatever fields its body has."""
    body = msgspec.json.encode({"type": kind, "by": "u1", "at": rfc3339(at), **fields})
    return Entry(stream, offset, kind, new_id(), HASH, "user:u1", at, body)


def order_state(stream: str, offset: int, state: str, customer: str, **fields: object) -> Snapshot:
    """A snapshot of an order."""
    known = {"id": stream.partition(":")[2], "state": state, "version": offset, "customer_id": customer}
    return Snapshot(stream, offset, 1, msgspec.json.encode({**known, **fields}))


def turn(*entries: Entry, **options: object) -> Turn:
    """A turn in the partition of its first entry."""
    return Turn(int(entries[0].stream[-3:], 16) & 1023, list(entries), **options)
