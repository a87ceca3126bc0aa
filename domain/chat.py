"""The rules of a conversation: who may say what, and what every member's devices are told.

The body of an event is what its members see: it is stored once, as JSON, and published as it is.
"""

from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from domain.aggregate import Decision, Facts, MessageFact, MessageNeed, Need
from domain.channels import Kind
from domain.commands import Actor, Command, Reminder
from domain.errors import Code, Refusal, from_validation, invalid
from domain.ids import is_uuid
from domain.times import rfc3339

MAX_TEXT: Final = 8_000
"""Characters of a message."""
MAX_ATTACHMENTS: Final = 10
MAX_EMOJI: Final = 16
MAX_MEMBERS: Final = 100
RECENT: Final = 64
"""Messages whose author the state remembers; older ones are looked up in the log."""


# --- commands ----------------------------------------------------------------------------------------------------


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


COMMANDS: Final[dict[str, type[msgspec.Struct]]] = {
    "open": Open,
    "send": Send,
    "card": Card,
    "edit": Edit,
    "delete": Delete,
    "react": React,
    "receipt.read": Receipt,
    "receipt.delivered": Receipt,
}
_SYSTEM_ONLY: Final = frozenset({"card"})


# --- events: what the members see --------------------------------------------------------------------------------


class MemberJoined(msgspec.Struct, frozen=True, tag="member.joined", omit_defaults=True):
    """Somebody is a member from here on. The first one of a conversation says which order it belongs to, if any."""

    by: str
    at: str
    user_id: str
    order_id: str | None = None


class MemberLeft(msgspec.Struct, frozen=True, tag="member.left"):
    by: str
    at: str
    user_id: str


class MessagePosted(msgspec.Struct, frozen=True, tag="message.posted", omit_defaults=True):
    """`by` is a user, or `system` for a card."""

    message_id: str
    by: str
    at: str
    text: str | None = None
    attachments: tuple[str, ...] = ()
    reply_to: str | None = None
    card: dict[str, Any] | None = None


class MessageEdited(msgspec.Struct, frozen=True, tag="message.edited"):
    message_id: str
    by: str
    at: str
    text: str


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


class ReceiptRead(msgspec.Struct, frozen=True, tag="receipt.read"):
    by: str
    at: str
    read_offset: int


class ReceiptDelivered(msgspec.Struct, frozen=True, tag="receipt.delivered"):
    by: str
    at: str
    delivered_offset: int


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
    | MessagePosted
    | MessageEdited
    | MessageDeleted
    | MessageReacted
    | ReceiptRead
    | ReceiptDelivered
)


# --- state -------------------------------------------------------------------------------------------------------


class Member(msgspec.Struct, frozen=True, array_like=True):
    """Watermarks of a member; offsets."""

    joined_offset: int
    read_offset: int = 0
    delivered_offset: int = 0


class RecentMessage(msgspec.Struct, frozen=True, array_like=True):
    by: str
    offset: int
    deleted: bool = False


class Conversation(msgspec.Struct):
    """A conversation as its activation holds it; messages themselves live in the log."""

    id: str
    version: int = 0
    epoch: str = ""
    order_id: str | None = None
    members: dict[str, Member] = {}
    recent: dict[str, RecentMessage] = {}


_event_decoder = msgspec.json.Decoder(ChatEvent)
_state_decoder = msgspec.json.Decoder(Conversation)
_encoder = msgspec.json.Encoder()


class ChatRules:
    """Conversations, as the actor runtime wants an aggregate (`domain.aggregate.Rules`)."""

    kind: Final[Kind] = "conversation"
    schema: Final = 1
    snapshot_every: Final = 200

    def initial(self, stream_id: str) -> Conversation:
        return Conversation(stream_id)

    def parse(self, command: Command) -> Any:
        shape = COMMANDS.get(command.name)
        if shape is None:
            raise invalid("command", "unknown", f"a conversation knows no command {command.name[:64]!r}")
        try:
            parsed = msgspec.json.decode(command.payload, type=shape)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise from_validation(error) from None
        _check(parsed)
        return parsed

    def needs(self, state: Conversation, actor: Actor, name: str) -> tuple[Need, ...]:
        return ()

    def admit(self, state: Conversation, command: Command, facts: Facts) -> None:
        if command.actor.kind == "system":
            return
        if command.name == "open" and state.version == 0:
            return
        if command.actor.id not in state.members:
            if command.name == "open":
                raise Refusal(Code.IDEMPOTENCY_MISMATCH, "this id is taken")
            raise Refusal(Code.NOT_FOUND, "there is no such conversation")
        if command.name in _SYSTEM_ONLY:
            raise Refusal(Code.FORBIDDEN, "only the platform posts cards")

    def needs_of(self, state: Conversation, command: Command, parsed: Any) -> tuple[Need, ...]:
        wanted = _message_named(parsed)
        if wanted is None or wanted in state.recent:
            return ()
        return (MessageNeed(state.id, wanted),)

    def touches(self, state: Conversation, command: Command, parsed: Any) -> tuple[str, ...]:
        return ()

    def decide(
        self, state: Conversation, command: Command, parsed: Any, now_ms: int, facts: Facts
    ) -> Decision[ChatEvent]:
        by, at = command.actor.by, rfc3339(now_ms)
        match parsed:
            case Send():
                self._message(state, parsed.reply_to, facts, "reply_to")
                return Decision(
                    [MessagePosted(command.command_id, by, at, parsed.text, parsed.attachments, parsed.reply_to)]
                )
            case Receipt():
                return Decision(self._receipt(state, command, parsed, at))
            case Card():
                return Decision([MessagePosted(command.command_id, by, at, parsed.text, card=parsed.card)])
            case Open():
                return Decision(self._open(state, command, parsed, at))
            case Edit():
                found = self._own(state, command, parsed.message_id, facts)
                if found.deleted:
                    raise Refusal(Code.CONFLICT, "the message has been deleted")
                return Decision([MessageEdited(parsed.message_id, by, at, parsed.text)])
            case Delete():
                found = self._own(state, command, parsed.message_id, facts)
                return Decision([] if found.deleted else [MessageDeleted(parsed.message_id, by, at)])
            case React():
                if self._message(state, parsed.message_id, facts, "message_id").deleted:
                    raise Refusal(Code.CONFLICT, "the message has been deleted")
                return Decision([MessageReacted(parsed.message_id, by, at, parsed.emoji, parsed.on)])
        raise AssertionError(f"unhandled command {parsed!r}")

    def _open(self, state: Conversation, command: Command, parsed: Open, at: str) -> list[ChatEvent]:
        by_system = command.actor.kind == "system"
        if state.version:
            raise Refusal(Code.IDEMPOTENCY_MISMATCH, "this conversation exists already")
        if parsed.order_id is not None and not by_system:
            raise invalid("order_id", "forbidden", "an order's conversations are made by the order")
        if not by_system and command.actor.id not in parsed.member_ids:
            raise invalid("member_ids", "invalid", "you must be a member of a conversation that you open")
        return [
            MemberJoined(command.actor.by, at, member, parsed.order_id if n == 0 else None)
            for n, member in enumerate(parsed.member_ids)
        ]

    def _receipt(self, state: Conversation, command: Command, parsed: Receipt, at: str) -> list[ChatEvent]:
        member = state.members.get(command.actor.id)
        if member is None:
            raise Refusal(Code.FORBIDDEN, "only members leave receipts")
        if parsed.offset > state.version:
            raise invalid("offset", "invalid", f"the conversation ends at offset {state.version}")
        if command.name == "receipt.read":
            moved = parsed.offset > member.read_offset
            return [ReceiptRead(command.actor.id, at, parsed.offset)] if moved else []
        moved = parsed.offset > member.delivered_offset
        return [ReceiptDelivered(command.actor.id, at, parsed.offset)] if moved else []

    def _message(self, state: Conversation, message_id: str | None, facts: Facts, field: str) -> MessageFact:
        if message_id is None:
            return MessageFact("", 0)
        recent = state.recent.get(message_id)
        if recent is not None:
            return MessageFact(recent.by, recent.offset, recent.deleted)
        found = facts.message(state.id, message_id)
        if found is None and field == "message_id":
            raise Refusal(Code.NOT_FOUND, "there is no such message in this conversation")
        if found is None:
            raise invalid(field, "unknown", "there is no such message in this conversation")
        return found

    def _own(self, state: Conversation, command: Command, message_id: str, facts: Facts) -> MessageFact:
        found = self._message(state, message_id, facts, "message_id")
        if found.by != command.actor.by:
            raise Refusal(Code.FORBIDDEN, "this message was written by somebody else")
        return found

    def evolve(self, state: Conversation, event: ChatEvent, offset: int) -> Conversation:
        state.version = offset
        match event:
            case MessagePosted():
                if len(state.recent) >= RECENT:
                    del state.recent[next(iter(state.recent))]
                state.recent[event.message_id] = RecentMessage(event.by, offset)
            case ReceiptRead():
                member = state.members.get(event.by)
                if member is not None:
                    state.members[event.by] = replace(member, read_offset=event.read_offset)
            case ReceiptDelivered():
                member = state.members.get(event.by)
                if member is not None:
                    state.members[event.by] = replace(member, delivered_offset=event.delivered_offset)
            case MessageDeleted():
                recent = state.recent.get(event.message_id)
                if recent is not None:
                    state.recent[event.message_id] = replace(recent, deleted=True)
            case MemberJoined():
                if offset == 1:
                    state.order_id = event.order_id
                    state.epoch = event.at
                state.members[event.user_id] = Member(offset)
            case MemberLeft():
                state.members.pop(event.user_id, None)
            case MessageEdited() | MessageReacted():
                pass
        return state

    def fork(self, state: Conversation) -> Conversation:
        return replace(state, members=dict(state.members), recent=dict(state.recent))

    def is_over(self, state: Conversation) -> bool:
        return False

    def version(self, state: Conversation) -> int:
        return state.version

    def epoch(self, state: Conversation) -> str:
        return state.epoch

    def may_read(self, state: Conversation, actor: Actor, facts: Facts) -> bool:
        return actor.id in state.members or actor.kind == "system"

    def may_signal(self, state: Conversation, actor: Actor, name: str) -> bool:
        return name == "typing" and actor.id in state.members

    def view(self, state: Conversation, actor: Actor, facts: Facts) -> bytes | None:
        if state.version == 0 or not self.may_read(state, actor, facts):
            return None
        member = state.members.get(actor.id)
        body: dict[str, Any] = {
            "id": state.id,
            "members": list(state.members),
            "offset": state.version,
            "read_offset": member.read_offset if member else 0,
        }
        if state.order_id is not None:
            body["order_id"] = state.order_id
        return _encoder.encode(body)

    def reminders(self, state: Conversation) -> tuple[Reminder, ...]:
        return ()

    def hints(self, state: Conversation, events: list[tuple[int, ChatEvent]]) -> list[tuple[str, bytes]]:
        told: dict[str, tuple[int, str]] = {}
        for offset, event in events:
            kind = self.event_type(event)
            if isinstance(event, ReceiptRead):
                told[event.by] = (offset, kind)
            elif not isinstance(event, ReceiptDelivered):
                told.update(dict.fromkeys(state.members, (offset, kind)))
                if isinstance(event, MemberLeft):
                    told[event.user_id] = (offset, kind)
        return [
            (user, _encoder.encode(ConversationActivity(state.id, offset, kind)))
            for user, (offset, kind) in told.items()
        ]

    def event_type(self, event: ChatEvent) -> str:
        return str(event.__struct_config__.tag)

    def encode_event(self, event: ChatEvent) -> bytes:
        return _encoder.encode(event)

    def decode_event(self, body: bytes) -> ChatEvent:
        event: ChatEvent = _event_decoder.decode(body)
        return event

    def publication(self, body: bytes) -> bytes:
        return body

    def encode_state(self, state: Conversation) -> bytes:
        return _encoder.encode(state)

    def decode_state(self, body: bytes) -> Conversation:
        return _state_decoder.decode(body)


CHAT: Final = ChatRules()


class TypingPayload(msgspec.Struct, frozen=True):
    on: bool


def typing(actor: Actor, payload: bytes) -> bytes:
    """The publication data for a typing signal.

    Raises:
        msgspec.ValidationError, msgspec.DecodeError: the payload is not `{"on": bool}`.
    """
    return _encoder.encode(Typing(actor.id, msgspec.json.decode(payload, type=TypingPayload).on))


def _message_named(parsed: Any) -> str | None:
    match parsed:
        case Send():
            return parsed.reply_to
        case Edit() | Delete() | React():
            return parsed.message_id
    return None


def _check(parsed: Any) -> None:
    """What a type cannot say about a payload."""
    named = _message_named(parsed)
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
