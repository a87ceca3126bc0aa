"""What happens in a conversation, and what its activation remembers of it.

The body of an event is stored once, as JSON, and is what the members see; only `private` is left out of publications.
"""

from typing import Any, Final

import msgspec


class Original(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a masked text was before; known to its author alone until contacts are revealed.

    `size` is its length. When the message is deleted the text goes and the size stays: what the state keeps then
    depends no less on the events alone.
    """

    size: int
    text: str = ""


class MemberJoined(msgspec.Struct, frozen=True, tag="member.joined", omit_defaults=True):
    """Somebody is a member from here on. The first one of a conversation says which order it belongs to, if any."""

    by: str
    at: str
    user_id: str
    order_id: str | None = None


class MemberLeft(msgspec.Struct, frozen=True, tag="member.left"):
    """Somebody left (`by` is themselves), or was taken out."""

    by: str
    at: str
    user_id: str


class MemberBlocked(msgspec.Struct, frozen=True, tag="member.blocked"):
    """A member wants to hear no more from another one (`on`), or does again."""

    by: str
    at: str
    user_id: str
    on: bool


class MessagePosted(msgspec.Struct, frozen=True, tag="message.posted", omit_defaults=True):
    """`by` is a user, or `system` for a card. `masked`: the kinds of contact details that are hidden in the text.

    `erased`: the message was deleted since, and its content is gone; `message.deleted` follows later in the stream.
    """

    message_id: str
    by: str
    at: str
    text: str | None = None
    attachments: tuple[str, ...] = ()
    reply_to: str | None = None
    card: dict[str, Any] | None = None
    masked: tuple[str, ...] = ()
    erased: bool = False
    private: Original | None = None


class MessageEdited(msgspec.Struct, frozen=True, tag="message.edited", omit_defaults=True):
    """The message reads `text` from here on. `masked` and `erased` as in `message.posted`."""

    message_id: str
    by: str
    at: str
    text: str | None = None
    masked: tuple[str, ...] = ()
    erased: bool = False
    private: Original | None = None


class MessageRevealed(msgspec.Struct, frozen=True, tag="message.revealed", omit_defaults=True):
    """What was hidden in the message may be seen now: this is its text."""

    message_id: str
    by: str
    at: str
    text: str | None = None
    erased: bool = False


class MessageDeleted(msgspec.Struct, frozen=True, tag="message.deleted"):
    message_id: str
    by: str
    at: str


class MessageReacted(msgspec.Struct, frozen=True, tag="message.reacted"):
    message_id: str
    by: str
    at: str
    emoji: str
    on: bool


class ReceiptRead(msgspec.Struct, frozen=True, tag="receipt.read", omit_defaults=True):
    """`read_offset` is the member's own watermark, the greatest of their devices'; `device` (a session) is at its own."""

    by: str
    at: str
    read_offset: int
    device: str = ""
    device_offset: int = 0


class ReceiptDelivered(msgspec.Struct, frozen=True, tag="receipt.delivered", omit_defaults=True):
    """As `receipt.read`: what has reached a device, whether anybody looked or not."""

    by: str
    at: str
    delivered_offset: int
    device: str = ""
    device_offset: int = 0


class ContactsRevealed(msgspec.Struct, frozen=True, tag="contacts.revealed"):
    """Contact details are hidden no more from here on; a `message.revealed` follows for each message that has some."""

    by: str
    at: str


class Typing(msgspec.Struct, frozen=True, tag="typing"):
    """Ephemeral: no offset, never stored."""

    by: str
    on: bool


class ConversationActivity(msgspec.Struct, frozen=True, tag="conversation.activity"):
    """A hint on `user:<id>`: a conversation of theirs has moved to `offset`."""

    conversation_id: str
    offset: int
    event: str


ChatEvent = (
    MemberJoined
    | MemberLeft
    | MemberBlocked
    | MessagePosted
    | MessageEdited
    | MessageRevealed
    | MessageDeleted
    | MessageReacted
    | ReceiptRead
    | ReceiptDelivered
    | ContactsRevealed
)

_decoder = msgspec.json.Decoder(ChatEvent)
_encoder = msgspec.json.Encoder()
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PRIVATE: Final = b'"private":'
ERASED: Final = b'"erased":true'
"""Stands in the body of an erased event, and in no other: within a text a quote has a backslash before it."""


def encode(event: ChatEvent) -> bytes:
    """The event as it is stored."""
    return _encoder.encode(event)


def decode(body: bytes) -> ChatEvent:
    """The event of a stored body, or of a publication."""
    event: ChatEvent = _decoder.decode(body)
    return event


def has_private(body: bytes) -> bool:
    """Whether a body has a private part. Within a text the mark cannot stand: a quote in a string has a backslash."""
    return _PRIVATE in body


def public(body: bytes) -> bytes:
    """The body without its private part."""
    if _PRIVATE not in body:
        return body
    fields = _fields.decode(body)
    fields.pop("private", None)
    return _encoder.encode(fields)


def erased(body: bytes) -> bytes:
    """A stored message, edit or revelation without its content: who, when and which message stay."""
    event = decode(body)
    match event:
        case MessagePosted() | MessageEdited():
            private = None if event.private is None else Original(event.private.size)
            event = type(event)(event.message_id, event.by, event.at, erased=True, private=private)
        case MessageRevealed():
            event = MessageRevealed(event.message_id, event.by, event.at, erased=True)
    return encode(event)
