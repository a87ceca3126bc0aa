"""What may be asked of a conversation: the commands' payloads, and what a type cannot say about them."""

from typing import Any, Final, Literal

import msgspec

from domain.commands import Command
from domain.errors import from_validation, invalid
from domain.ids import is_uuid

MAX_TEXT: Final = 8_000
"""Characters of a message."""
MAX_ATTACHMENTS: Final = 10
MAX_EMOJI: Final = 16
MAX_MEMBERS: Final = 100
MAX_EDITS: Final = 100
"""Of one message: all of them are overwritten in the one transaction that deletes it."""


class Open(msgspec.Struct, frozen=True):
    """Begin a conversation. `order_id` may be set by the platform alone."""

    member_ids: tuple[str, ...]
    order_id: str | None = None


class Send(msgspec.Struct, frozen=True):
    """Say something: a text, attachments by upload id, or both."""

    text: str | None = None
    attachments: tuple[str, ...] = ()
    reply_to: str | None = None


class Card(msgspec.Struct, frozen=True):
    """A message of the platform itself: what happened, for programs (`card`) and for people (`text`)."""

    text: str
    card: dict[str, Any]


class Edit(msgspec.Struct, frozen=True):
    message_id: str
    text: str


class Delete(msgspec.Struct, frozen=True):
    message_id: str


class React(msgspec.Struct, frozen=True):
    message_id: str
    emoji: str
    on: bool


class Receipt(msgspec.Struct, frozen=True):
    """A watermark: everything up to `offset` has been read, or has reached a device."""

    offset: int


class AddMember(msgspec.Struct, frozen=True):
    user_id: str


class RemoveMember(msgspec.Struct, frozen=True):
    """Who opened the conversation takes somebody out of it; anybody themselves."""

    user_id: str


class Leave(msgspec.Struct, frozen=True):
    """The caller is a member no more, and sees nothing of the conversation any more."""


class Block(msgspec.Struct, frozen=True):
    """The caller wants to hear no more from another member."""

    user_id: str


class Unblock(msgspec.Struct, frozen=True):
    user_id: str


class RevealContacts(msgspec.Struct, frozen=True):
    """The order has come so far that both sides may know each other's contact details. The platform alone says so."""


COMMANDS: Final[dict[str, type[msgspec.Struct]]] = {
    "open": Open,
    "send": Send,
    "card": Card,
    "edit": Edit,
    "delete": Delete,
    "react": React,
    "receipt.read": Receipt,
    "receipt.delivered": Receipt,
    "member.add": AddMember,
    "member.remove": RemoveMember,
    "leave": Leave,
    "block": Block,
    "unblock": Unblock,
    "contacts.reveal": RevealContacts,
}
SYSTEM_ONLY: Final = frozenset({"card", "contacts.reveal"})
MEMBERSHIP: Final = frozenset({"member.add", "member.remove", "leave"})


def parse(command: Command) -> Any:
    """The payload as the struct of its command.

    Raises:
        Refusal: `invalid`, with the fields that are wrong.
    """
    shape = COMMANDS.get(command.name)
    if shape is None:
        raise invalid("command", "unknown", f"a conversation knows no command {command.name[:64]!r}")
    try:
        parsed = msgspec.json.decode(command.payload, type=shape)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise from_validation(error) from None
    _check(parsed)
    return parsed


def message_named(parsed: Any) -> str | None:
    """The message that a command is about."""
    match parsed:
        case Send():
            return parsed.reply_to
        case Edit() | Delete() | React():
            return parsed.message_id
    return None


def _check(parsed: Any) -> None:
    named = message_named(parsed)
    if named is not None and not is_uuid(named):
        field: Literal["reply_to", "message_id"] = "reply_to" if isinstance(parsed, Send) else "message_id"
        raise invalid(field, "invalid", "a message id is a canonical lower-case UUID")
    match parsed:
        case Send():
            _check_send(parsed)
        case Edit():
            _check_text(parsed.text)
        case React():
            if not 1 <= len(parsed.emoji) <= MAX_EMOJI:
                raise invalid("emoji", "invalid", f"an emoji has 1 to {MAX_EMOJI} characters")
        case Receipt():
            if parsed.offset < 0:
                raise invalid("offset", "invalid", "an offset is not negative")
        case AddMember() | RemoveMember() | Block() | Unblock():
            if not is_uuid(parsed.user_id):
                raise invalid("user_id", "invalid", "a user id is a canonical lower-case UUID")
        case Open():
            _check_open(parsed)


def _check_send(parsed: Send) -> None:
    if parsed.text is None and not parsed.attachments:
        raise invalid("text", "missing", "a message has a text or attachments")
    if parsed.text is not None:
        _check_text(parsed.text)
    if len(parsed.attachments) > MAX_ATTACHMENTS:
        raise invalid("attachments", "too_many", f"a message has at most {MAX_ATTACHMENTS} attachments")
    for n, upload_id in enumerate(parsed.attachments):
        if not is_uuid(upload_id):
            raise invalid(f"attachments[{n}]", "invalid", "an upload id is a canonical lower-case UUID")


def _check_text(text: str) -> None:
    if not text.strip():
        raise invalid("text", "empty", "a text is not blank")
    if len(text) > MAX_TEXT:
        raise invalid("text", "too_long", f"a text has at most {MAX_TEXT} characters; this one has {len(text)}")


def _check_open(parsed: Open) -> None:
    for n, member in enumerate(parsed.member_ids):
        if not is_uuid(member):
            raise invalid(f"member_ids[{n}]", "invalid", "a user id is a canonical lower-case UUID")
    if len(set(parsed.member_ids)) != len(parsed.member_ids):
        raise invalid("member_ids", "double", "a member is named twice")
    if not 2 <= len(parsed.member_ids) <= MAX_MEMBERS:
        raise invalid("member_ids", "invalid", f"a conversation has 2 to {MAX_MEMBERS} members")
