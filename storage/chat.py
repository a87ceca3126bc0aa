"""What the events of conversations change in their read models: pure first, then as SQL.

A message is its row in the log and is stored nowhere else; here are only lists of conversations, memberships with their
watermarks, and what has been edited, deleted or reacted to.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.chat import (
    CHAT,
    MemberJoined,
    MemberLeft,
    MessageDeleted,
    MessageEdited,
    MessageReacted,
    ReceiptDelivered,
    ReceiptRead,
)
from domain.ports import Entry
from domain.times import parse_rfc3339, rfc3339
from storage import tables as t
from storage.statements import Ask, Preparer, Script, Step, later, numbered, play, wide

CONVERSATION: Final = "conversation:"
POSTED: Final = "message.posted"
_HIDDEN_WHEN_DELETED: Final = ("text", "attachments", "card", "reply_to")
_ZERO: sa.ColumnElement[int] = sa.literal_column("0")


class MemberChange(msgspec.Struct):
    """What happened to a membership; offsets, 0 or None for nothing."""

    joined: int = 0
    left: int | None = None
    read: int = 0
    delivered: int = 0


class MessageChange(msgspec.Struct):
    """How a message differs from what was posted. `reactions`: emoji to the ids of users, in order."""

    text: str | None = None
    edited_at: int | None = None
    deleted_at: int | None = None
    reactions: dict[str, list[str]] = {}


MessageEvent = MessageEdited | MessageDeleted | MessageReacted


class ConversationChange(msgspec.Struct):
    """What the events of one flush change in one conversation. `active_at` is 0 where there were only receipts."""

    first: int = 0
    offset: int = 0
    created_at: int = 0
    active_at: int = 0
    order_id: str | None = None
    last_message: bytes | None = None
    members: dict[str, MemberChange] = {}
    messages: list[MessageEvent] = []


def conversation_changes(entries: Iterable[Entry]) -> dict[str, ConversationChange]:
    """By conversation id, everything that these events change; entries of other streams are passed over."""
    changes: dict[str, ConversationChange] = {}
    for entry in entries:
        if not entry.stream.startswith(CONVERSATION):
            continue
        identifier = entry.stream[len(CONVERSATION) :]
        change = changes.get(identifier)
        if change is None:
            change = changes[identifier] = ConversationChange(entry.offset, created_at=entry.at)
        change.offset = entry.offset
        if entry.type == POSTED:
            change.last_message = entry.body
            change.active_at = max(change.active_at, entry.at)
        else:
            _note(change, entry)
    return changes


def _note(change: ConversationChange, entry: Entry) -> None:
    event = CHAT.decode_event(entry.body)
    match event:
        case ReceiptRead():
            member = change.members.setdefault(event.by, MemberChange())
            member.read = max(member.read, event.read_offset)
            return
        case ReceiptDelivered():
            member = change.members.setdefault(event.by, MemberChange())
            member.delivered = max(member.delivered, event.delivered_offset)
            return
        case MemberJoined():
            member = change.members.setdefault(event.user_id, MemberChange())
            member.joined, member.left = entry.offset, None
            change.order_id = change.order_id or event.order_id
        case MemberLeft():
            change.members.setdefault(event.user_id, MemberChange()).left = entry.offset
        case MessageEdited() | MessageDeleted() | MessageReacted():
            change.messages.append(event)
    change.active_at = max(change.active_at, entry.at)


def apply(change: MessageChange, event: MessageEvent) -> None:
    """Let an event change the message."""
    match event:
        case MessageEdited():
            change.text, change.edited_at = event.text, parse_rfc3339(event.at)
        case MessageDeleted():
            change.text, change.deleted_at = None, parse_rfc3339(event.at)
        case MessageReacted():
            users = [user for user in change.reactions.get(event.emoji, []) if user != event.by]
            if event.on:
                users.append(event.by)
            change.reactions[event.emoji] = users
            if not users:
                del change.reactions[event.emoji]


def shown(body: bytes, change: MessageChange | None) -> bytes:
    """A posted message as it reads now: with its edited text, or without any content once it has been deleted."""
    if change is None or (change.edited_at is None and change.deleted_at is None):
        return body
    data: dict[str, Any] = msgspec.json.decode(body)
    if change.deleted_at is not None:
        for key in _HIDDEN_WHEN_DELETED:
            data.pop(key, None)
        data["deleted_at"] = rfc3339(change.deleted_at)
    elif change.edited_at is not None:
        data["text"], data["edited_at"] = change.text, rfc3339(change.edited_at)
    return msgspec.json.encode(data)


# --- SQL ---------------------------------------------------------------------------------------------------------


def _conversation_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [
        ("order_id", sa.case((sa.func.length(new.order_id) > _ZERO, new.order_id), else_=old.order_id)),
        later(new, old, "updated_at"),
        ("last_message", sa.func.coalesce(new.last_message, old.last_message)),
        later(new, old, "offset"),
    ]


def _member_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    joined = new.joined_offset > _ZERO
    return [
        ("left_offset", sa.case((joined, new.left_offset), else_=sa.func.coalesce(new.left_offset, old.left_offset))),
        later(new, old, "joined_offset"),
        later(new, old, "read_offset"),
        later(new, old, "delivered_offset"),
    ]


def _message_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [(name, new[name]) for name in ("text", "edited_at", "deleted_at", "reactions")]


def _messages_changed(width: int) -> Any:
    c = t.message_change.c
    return sa.select(c.conversation_id, c.message_id, c.text, c.edited_at, c.deleted_at, c.reactions).where(
        sa.or_(
            *(
                sa.and_(c.conversation_id == sa.bindparam(f"c{n}"), c.message_id == sa.bindparam(f"m{n}"))
                for n in range(width)
            )
        )
    )


Changed = dict[tuple[str, str], MessageChange]
"""By (conversation id, message id)."""


async def read_changes(connection: AsyncConnection, sql: Preparer, keys: Sequence[tuple[str, str]]) -> Changed:
    """The changes of those messages that have any."""
    return await play(connection, _changes_of(sql, keys))


def _changes_of(sql: Preparer, keys: Sequence[tuple[str, str]]) -> Script[Changed]:
    found: Changed = {}
    for piece in wide(keys):
        values = numbered(c=[c for c, _ in piece], m=[m for _, m in piece])
        rows = yield Ask(sql.prepare(_messages_changed, len(piece)), values)
        for conversation_id, message_id, text, edited_at, deleted_at, reactions in rows:
            by_emoji = msgspec.json.decode(reactions, type=dict[str, list[str]])
            found[conversation_id, message_id] = MessageChange(text, edited_at, deleted_at, by_emoji)
    return found


def rows(sql: Preparer, changes: Mapping[str, ConversationChange]) -> list[Step]:
    """The rows of one flush: one per conversation, and one per member that it touched."""
    ordered = sorted(changes.items())
    # A conversation that exists has its order already. Empty text says so rather than NULL: MariaDB takes rows in bulk
    # only where no column is NULL in all of them.
    conversations = [
        (
            key,
            c.order_id if c.first == 1 else c.order_id or "",
            c.created_at,
            c.active_at,
            c.offset,
            c.last_message,
        )
        for key, c in ordered
    ]
    members = [
        (key, user, m.joined, m.left, m.read, m.delivered)
        for key, c in ordered
        for user, m in sorted(c.members.items())
    ]
    return [
        (sql.upsert(t.conversation, _conversation_upsert), conversations),
        (sql.upsert(t.conversation_member, _member_upsert), members),
    ]


def message_events(changes: Mapping[str, ConversationChange]) -> list[tuple[str, MessageEvent]]:
    """What happens in one flush to messages that were posted before."""
    return [(key, event) for key, c in sorted(changes.items()) for event in c.messages]


def write_messages(sql: Preparer, events: Sequence[tuple[str, MessageEvent]]) -> Script[None]:
    """Write one row per message that was changed."""
    if not events:
        return
    # Read, change, write is safe here: the log rows of this transaction hold the partition already.
    keys = sorted({(key, event.message_id) for key, event in events})
    changed = yield from _changes_of(sql, keys)
    for key, event in events:
        apply(changed.setdefault((key, event.message_id), MessageChange()), event)
    rows = [
        (*key, change.text, change.edited_at, change.deleted_at, msgspec.json.encode(change.reactions))
        for key, change in sorted(changed.items())
    ]
    yield sql.upsert(t.message_change, _message_upsert), rows
