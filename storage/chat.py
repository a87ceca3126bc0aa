"""What the events of conversations change in their read models: pure first, then as SQL.

A message is its row in the log and is stored nowhere else; here are only lists of conversations, memberships with their
watermarks, and what has been edited, deleted or reacted to.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain import chat_events
from domain.chat import (
    CHAT,
    ContactsRevealed,
    MemberBlocked,
    MemberJoined,
    MemberLeft,
    MessageDeleted,
    MessageEdited,
    MessagePosted,
    MessageReacted,
    MessageRevealed,
    ReceiptDelivered,
    ReceiptRead,
)
from domain.ports import Entry
from domain.times import parse_rfc3339, rfc3339
from storage import log_queries, uploads
from storage import tables as t
from storage.search_index import forgotten
from storage.statements import Ask, Preparer, Script, Step, later, numbered, play, wide

CONVERSATION: Final = "conversation:"
POSTED: Final = "message.posted"
EDITED: Final = "message.edited"
_HIDDEN_WHEN_DELETED: Final = ("text", "attachments", "card", "reply_to", "masked", "erased")
_ZERO: sa.ColumnElement[int] = sa.literal_column("0")


class MemberChange(msgspec.Struct):
    """What happened to a membership; offsets, 0 or None for nothing."""

    joined: int = 0
    left: int | None = None
    read: int = 0
    delivered: int = 0


class MessageChange(msgspec.Struct):
    """How a message differs from what was posted. `reactions`: emoji to the ids of users, in order.

    `text` is what everybody may read instead of what was posted, and `masked` says what is hidden in it; the `original` is
    for its author. `texts`: the offsets of the later events that hold a text of it.
    """

    text: str | None = None
    edited_at: int | None = None
    deleted_at: int | None = None
    reactions: dict[str, list[str]] = {}
    texts: list[int] = []
    masked: tuple[str, ...] = ()
    original: str | None = None


MessageEvent = MessageEdited | MessageRevealed | MessageDeleted | MessageReacted


class ConversationChange(msgspec.Struct):
    """What the events of one flush change in one conversation. `active_at` is 0 where there were only receipts."""

    first: int = 0
    offset: int = 0
    created_at: int = 0
    active_at: int = 0
    order_id: str | None = None
    last_message: bytes | None = None
    revealed_at: int = 0
    members: dict[str, MemberChange] = {}
    messages: list[tuple[int, MessageEvent]] = []


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
            # Whoever comes back begins anew.
            change.members[event.user_id] = MemberChange(joined=entry.offset)
            change.order_id = change.order_id or event.order_id
        case MemberLeft():
            change.members.setdefault(event.user_id, MemberChange()).left = entry.offset
        case MessageEdited() | MessageRevealed() | MessageDeleted() | MessageReacted():
            change.messages.append((entry.offset, event))
        case ContactsRevealed():
            change.revealed_at = parse_rfc3339(event.at)
        case MemberBlocked() | MessagePosted():
            pass
    change.active_at = max(change.active_at, entry.at)


def apply(change: MessageChange, offset: int, event: MessageEvent) -> None:
    """Let an event change the message."""
    match event:
        case MessageEdited():
            change.text, change.edited_at = event.text, parse_rfc3339(event.at)
            change.masked = event.masked
            change.original = event.private.text if event.private is not None else None
            change.texts.append(offset)
        case MessageRevealed():
            change.text, change.masked, change.original = event.text, (), None
            change.texts.append(offset)
        case MessageDeleted():
            change.text, change.deleted_at = None, parse_rfc3339(event.at)
            change.masked, change.original = (), None
        case MessageReacted():
            users = [user for user in change.reactions.get(event.emoji, []) if user != event.by]
            if event.on:
                users.append(event.by)
            change.reactions[event.emoji] = users
            if not users:
                del change.reactions[event.emoji]


class _Hidden(msgspec.Struct):
    by: str = ""
    text: str | None = None
    masked: tuple[str, ...] = ()
    private: chat_events.Original | None = None


def author_of(body: bytes) -> str:
    """Who wrote a message."""
    return msgspec.json.decode(body, type=_Hidden).by


class Reading(msgspec.Struct, frozen=True):
    """How a message reads now: `text` to everybody, `original` to its author where something is `masked` in it."""

    text: str | None
    masked: tuple[str, ...] = ()
    original: str | None = None


def reading(body: bytes, change: MessageChange | None, *, revealed: bool = False) -> Reading:
    """How a posted message reads today; `revealed`: contact details are hidden from nobody any more."""
    posted = msgspec.json.decode(body, type=_Hidden)
    if change is not None and change.deleted_at is not None:
        return Reading(None)
    if change is None or change.text is None:
        found = Reading(posted.text, posted.masked, None if posted.private is None else posted.private.text)
    else:
        found = Reading(change.text, change.masked, change.original)
    return Reading(found.original) if revealed and found.original is not None else found


def shown(body: bytes, change: MessageChange | None, viewer: str = "", *, revealed: bool = False) -> bytes:
    """A posted message as it reads now to the viewer: with its edited text, or without any content once it is deleted."""
    if change is None and not chat_events.has_private(body):
        return body
    data: dict[str, Any] = msgspec.json.decode(body)
    data.pop("private", None)
    if change is not None and change.deleted_at is not None:
        for key in _HIDDEN_WHEN_DELETED:
            data.pop(key, None)
        data["deleted_at"] = rfc3339(change.deleted_at)
        return msgspec.json.encode(data)
    now = reading(body, change, revealed=revealed)
    data.pop("masked", None)
    if now.text is not None:
        data["text"] = now.original if now.original is not None and viewer == data["by"] else now.text
    if now.masked:
        data["masked"] = now.masked
    if change is not None and change.edited_at is not None:
        data["edited_at"] = rfc3339(change.edited_at)
    return msgspec.json.encode(data)


# --- SQL ---------------------------------------------------------------------------------------------------------


def _conversation_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [
        ("order_id", sa.case((sa.func.length(new.order_id) > _ZERO, new.order_id), else_=old.order_id)),
        later(new, old, "updated_at"),
        ("last_message", sa.func.coalesce(new.last_message, old.last_message)),
        later(new, old, "revealed_at"),
        later(new, old, "offset"),
    ]


def _member_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    joined = new.joined_offset > _ZERO
    return [
        ("left_offset", sa.case((joined, new.left_offset), else_=sa.func.coalesce(new.left_offset, old.left_offset))),
        later(new, old, "joined_offset"),
        ("read_offset", sa.case((joined, new.read_offset), else_=_greater(new.read_offset, old.read_offset))),
        (
            "delivered_offset",
            sa.case((joined, new.delivered_offset), else_=_greater(new.delivered_offset, old.delivered_offset)),
        ),
    ]


def _greater(one: Any, other: Any) -> Any:
    return sa.case((one > other, one), else_=other)


def _message_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    kept = ("text", "edited_at", "deleted_at", "reactions", "texts", "masked", "original")
    return [(name, new[name]) for name in kept]


def _messages_changed(width: int) -> Any:
    c = t.message_change.c
    named = (
        sa.and_(c.conversation_id == sa.bindparam(f"c{n}"), c.message_id == sa.bindparam(f"m{n}")) for n in range(width)
    )
    return sa.select(*c).where(sa.or_(*named))


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
        for conversation_id, message_id, text, edited_at, deleted_at, reactions, texts, masked, original in rows:
            by_emoji = msgspec.json.decode(reactions, type=dict[str, list[str]])
            found[conversation_id, message_id] = MessageChange(
                text,
                edited_at,
                deleted_at,
                by_emoji,
                msgspec.json.decode(texts or b"[]", type=list[int]),
                msgspec.json.decode(masked or b"[]", type=tuple[str, ...]),
                original,
            )
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
            c.revealed_at,
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


def message_events(changes: Mapping[str, ConversationChange]) -> list[tuple[str, int, MessageEvent]]:
    """What happens in one flush to messages that were posted before: (conversation id, offset, event)."""
    return [(key, offset, event) for key, c in sorted(changes.items()) for offset, event in c.messages]


def deleted_messages(changes: Mapping[str, ConversationChange]) -> list[tuple[str, str]]:
    """(conversation id, message id) of everything that one flush deletes."""
    return [(key, event.message_id) for key, _, event in message_events(changes) if isinstance(event, MessageDeleted)]


def write_messages(sql: Preparer, changes: Mapping[str, ConversationChange]) -> Script[None]:
    """Write one row per message that was changed, and leave no content of those that were deleted."""
    events = message_events(changes)
    if not events:
        return
    # Read, change, write is safe here: the log rows of this transaction hold the partition already.
    keys = sorted({(key, event.message_id) for key, _, event in events})
    changed = yield from _changes_of(sql, keys)
    for key, offset, event in events:
        apply(changed.setdefault((key, event.message_id), MessageChange()), offset, event)
    yield sql.upsert(t.message_change, _message_upsert), [_row(*item) for item in sorted(changed.items(), key=_key)]
    deleted = {key: changed[key] for key in deleted_messages(changes)}
    if deleted:
        yield from _erase(sql, deleted)
        yield from forgotten(sql, sorted(deleted))


def _key(item: tuple[tuple[str, str], MessageChange]) -> tuple[str, str]:
    return item[0]


def _row(key: tuple[str, str], change: MessageChange) -> tuple[Any, ...]:
    return (
        *key,
        change.text,
        change.edited_at,
        change.deleted_at,
        msgspec.json.encode(change.reactions),
        msgspec.json.encode(change.texts),
        msgspec.json.encode(change.masked),
        change.original,
    )


def _erase(sql: Preparer, deleted: Changed) -> Script[None]:
    """Overwrite what the log and the lists hold of these messages, those of this very transaction too."""
    keys = [(CONVERSATION + place, message_id) for place, message_id in sorted(deleted)]
    posted = yield from log_queries.firsts(sql, keys)
    later_on = sorted(
        (CONVERSATION + place, offset) for (place, _), change in deleted.items() for offset in change.texts
    )
    entries = [*posted.values(), *(yield from log_queries.rows_at(sql, later_on))]
    forget = sql.prepare(_forget_body)
    bodies = [(entry.stream, entry.offset, chat_events.erased(entry.body)) for entry in entries]
    yield (
        forget,
        [forget.row({"of_stream": stream, "at_offset": offset, "erased": body}) for stream, offset, body in bodies],
    )
    forget = sql.prepare(_forget_last)
    lasts = []
    for (stream, _), entry in sorted(posted.items()):
        # Its encoded form begins with what it is and which one.
        head = msgspec.json.encode({"type": POSTED, "message_id": entry.command_id})[:-1]
        body = chat_events.erased(entry.body)
        place = stream.removeprefix(CONVERSATION)
        lasts.append(forget.row({"place": place, "head": head, "size": len(head), "erased": body}))
    yield forget, lasts
    uses = [
        (upload, entry.stream, entry.command_id or "") for entry in entries for upload in uploads.of_event(entry.body)
    ]
    if uses:
        at_ms = max(change.deleted_at or 0 for change in deleted.values())
        yield from uploads.let_go(sql, sorted(set(uses)), at_ms)


def _forget_body(width: int) -> Any:
    c = t.partition_log.c
    known = (c.stream == sa.bindparam("of_stream"), c.offset == sa.bindparam("at_offset"))
    return sa.update(t.partition_log).where(*known).values(body=sa.bindparam("erased"))


def _forget_last(width: int) -> Any:
    c = t.conversation.c
    head = sa.func.substr(c.last_message, 1, sa.bindparam("size", type_=sa.Integer()), type_=sa.LargeBinary())
    known = (c.id == sa.bindparam("place"), head == sa.bindparam("head"))
    return sa.update(t.conversation).where(*known).values(last_message=sa.bindparam("erased"))
