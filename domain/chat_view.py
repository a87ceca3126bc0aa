"""What a device shows of a conversation, folded from its publications alone; the same as REST says of it.

A device that has everything from offset 1 on needs nothing else. Where texts hide contact details it knows what everybody
may read; REST shows their authors more.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from domain.chat_events import (
    ChatEvent,
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
from domain.chat_members import Member, change_members, take_receipt


class Message(msgspec.Struct, frozen=True):
    """A message as it reads now. `reactions`: emoji → users, in the order in which they reacted."""

    message_id: str
    by: str
    at: str
    offset: int
    text: str | None = None
    attachments: tuple[str, ...] = ()
    reply_to: str | None = None
    card: dict[str, Any] | None = None
    masked: tuple[str, ...] = ()
    edited_at: str | None = None
    deleted_at: str | None = None
    reactions: dict[str, tuple[str, ...]] = {}


class View(msgspec.Struct):
    """A conversation up to `offset`. `messages` are in the order in which they were posted.

    `blocks`: member → those whom they have blocked. `watermarks` of those who are members.
    """

    offset: int = 0
    epoch: str = ""
    order_id: str | None = None
    opened_by: str = ""
    members: dict[str, Member] = {}
    messages: dict[str, Message] = {}
    blocks: dict[str, tuple[str, ...]] = {}
    contacts_revealed: bool = False


class Gap(Exception):
    """An event does not follow on what the view holds: what is missing must be fetched first."""


def apply(view: View, offset: int, event: ChatEvent) -> View:
    """The view with one event more; the one given may be used for it. What it has seen before changes nothing.

    Raises:
        Gap: offsets between the view's and this one are missing.
    """
    if offset <= view.offset:
        return view
    if offset != view.offset + 1:
        raise Gap(f"{offset} does not follow {view.offset}")
    view.offset = offset
    match event:
        case MessagePosted() | MessageEdited() | MessageRevealed() | MessageDeleted() | MessageReacted():
            _message(view, offset, event)
        case ReceiptRead() | ReceiptDelivered():
            take_receipt(view, event)
        case MemberJoined() | MemberLeft() | MemberBlocked():
            change_members(view, event, offset)
        case ContactsRevealed():
            view.contacts_revealed = True
    return view


def unread(view: View, user_id: str) -> int:
    """How many messages of other people the member has not read: as lists count them."""
    member = view.members.get(user_id)
    if member is None:
        return 0
    after = max(member.read_offset, member.joined_offset)
    return sum(
        message.offset > after and message.deleted_at is None and message.by not in (user_id, "system")
        for message in view.messages.values()
    )


def message_json(message: Message) -> dict[str, Any]:
    """The message as `GET …/messages` shows it to everybody but its author."""
    shown: dict[str, Any] = {
        "message_id": message.message_id,
        "by": message.by,
        "at": message.at,
        "offset": message.offset,
    }
    if message.deleted_at is not None:
        return shown | {"deleted": True, "deleted_at": message.deleted_at}
    for name in ("text", "reply_to", "card", "edited_at"):
        if (value := getattr(message, name)) is not None:
            shown[name] = value
    for name in ("attachments", "masked"):
        if value := getattr(message, name):
            shown[name] = list(value)
    if message.reactions:
        shown["reactions"] = {emoji: list(users) for emoji, users in message.reactions.items()}
    return shown


def _message(
    view: View,
    offset: int,
    event: MessagePosted | MessageEdited | MessageRevealed | MessageDeleted | MessageReacted,
) -> None:
    if isinstance(event, MessagePosted):
        view.messages[event.message_id] = Message(
            event.message_id,
            event.by,
            event.at,
            offset,
            event.text,
            event.attachments,
            event.reply_to,
            event.card,
            event.masked,
        )
        return
    message = view.messages.get(event.message_id)
    if message is not None:
        view.messages[event.message_id] = _changed(message, event)


def _changed(message: Message, event: MessageEdited | MessageRevealed | MessageDeleted | MessageReacted) -> Message:
    match event:
        case MessageEdited():
            return replace(message, text=event.text, masked=event.masked, edited_at=event.at)
        case MessageRevealed():
            return replace(message, text=event.text, masked=())
        case MessageReacted():
            return replace(message, reactions=_reactions(message.reactions, event))
        case MessageDeleted():
            return Message(message.message_id, message.by, message.at, message.offset, deleted_at=event.at)


def _reactions(known: dict[str, tuple[str, ...]], event: MessageReacted) -> dict[str, tuple[str, ...]]:
    users = tuple(user for user in known.get(event.emoji, ()) if user != event.by)
    if event.on:
        users = (*users, event.by)
    changed = {**known, event.emoji: users}
    if not users:
        del changed[event.emoji]
    return changed
