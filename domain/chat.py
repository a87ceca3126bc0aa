"""The rules of a conversation: who may say what, and what every member's devices are told."""

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from domain import chat_events as events
from domain.aggregate import AccountNeed, BlockNeed, Decision, Facts, MessageFact, MessageNeed, Need
from domain.channels import Kind
from domain.chat_commands import (
    COMMANDS,
    MAX_ATTACHMENTS,
    MAX_EDITS,
    MAX_EMOJI,
    MAX_MEMBERS,
    MAX_TEXT,
    MEMBERSHIP,
    SYSTEM_ONLY,
    AddMember,
    Block,
    Card,
    Delete,
    Edit,
    Leave,
    Open,
    React,
    Receipt,
    RemoveMember,
    RevealContacts,
    Send,
    Unblock,
    message_named,
    parse,
)
from domain.chat_events import (
    ChatEvent,
    ContactsRevealed,
    ConversationActivity,
    MemberBlocked,
    MemberJoined,
    MemberLeft,
    MessageDeleted,
    MessageEdited,
    MessagePosted,
    MessageReacted,
    MessageRevealed,
    Original,
    ReceiptDelivered,
    ReceiptRead,
    Typing,
)
from domain.chat_members import MAX_DEVICES, Member, change_members, is_blocked, marked, take_receipt
from domain.chat_state import RECENT, Conversation, RecentMessage, forget_original, keep_original
from domain.commands import Actor, Command, Reminder
from domain.errors import Code, Refusal, invalid
from domain.masking import mask
from domain.times import rfc3339
from domain.uploads import needs_of, require_own

__all__ = [
    "CHAT",
    "COMMANDS",
    "MAX_ATTACHMENTS",
    "MAX_DEVICES",
    "MAX_EDITS",
    "MAX_EMOJI",
    "MAX_MEMBERS",
    "MAX_TEXT",
    "RECENT",
    "ChatEvent",
    "ChatRules",
    "ContactsRevealed",
    "Conversation",
    "ConversationActivity",
    "Member",
    "MemberBlocked",
    "MemberJoined",
    "MemberLeft",
    "MessageDeleted",
    "MessageEdited",
    "MessagePosted",
    "MessageReacted",
    "MessageRevealed",
    "ReceiptDelivered",
    "ReceiptRead",
    "RecentMessage",
    "Send",
    "Typing",
    "typing",
]

_SAYING: Final = frozenset({"send", "edit", "react", "member.add"})
"""What the one whom the other has blocked cannot do in a conversation of two; to add a third would be a way around it."""

_state_decoder = msgspec.json.Decoder(Conversation)
_encoder = msgspec.json.Encoder()


class ChatRules:
    """Conversations, as the actor runtime wants an aggregate (`domain.aggregate.Rules`)."""

    kind: Final[Kind] = "conversation"
    schema: Final = 2
    snapshot_every: Final = 200

    def initial(self, stream_id: str) -> Conversation:
        return Conversation(stream_id)

    def parse(self, command: Command) -> Any:
        return parse(command)

    def needs(self, state: Conversation, actor: Actor, name: str) -> tuple[Need, ...]:
        return ()

    # --- who may ------------------------------------------------------------------------------------------------------

    def admit(self, state: Conversation, command: Command, facts: Facts) -> None:
        if command.actor.kind == "system":
            return
        if command.name == "open" and state.version == 0:
            return
        if command.actor.id not in state.members:
            if command.name == "open":
                raise Refusal(Code.IDEMPOTENCY_MISMATCH, "this id is taken")
            raise Refusal(Code.NOT_FOUND, "there is no such conversation")
        if command.name in SYSTEM_ONLY:
            raise Refusal(Code.FORBIDDEN, "only the platform does this")
        if command.name in MEMBERSHIP and state.order_id is not None:
            raise Refusal(Code.FORBIDDEN, "the members of an order's conversation are those of the order")
        if command.name in _SAYING and is_blocked(state, command.actor.id):
            raise Refusal(Code.FORBIDDEN, "the other member has blocked you")

    def may_read(self, state: Conversation, actor: Actor, facts: Facts) -> bool:
        return actor.id in state.members or actor.kind == "system"

    def may_signal(self, state: Conversation, actor: Actor, name: str) -> bool:
        return name == "typing" and actor.id in state.members and not is_blocked(state, actor.id)

    def needs_of(self, state: Conversation, command: Command, parsed: Any) -> tuple[Need, ...]:
        user = command.actor.id
        match parsed:
            case Send() if parsed.reply_to is None and not parsed.attachments:
                return ()
            case Open() if command.actor.kind != "system" and state.version == 0:
                others = [member for member in parsed.member_ids if member != user]
                own = [BlockNeed(user, other) for other in others] if len(others) == 1 else []
                return (*(BlockNeed(other, user) for other in others), *own)
            case AddMember() if command.actor.kind != "system" and parsed.user_id not in state.members:
                return (AccountNeed(parsed.user_id), BlockNeed(parsed.user_id, user))
        wanted = message_named(parsed)
        named = () if wanted is None or wanted in state.recent else (MessageNeed(state.id, wanted),)
        return (*named, *needs_of(parsed.attachments)) if isinstance(parsed, Send) else named

    def touches(self, state: Conversation, command: Command, parsed: Any) -> tuple[str, ...]:
        return ()

    # --- what follows -------------------------------------------------------------------------------------------------

    def decide(
        self, state: Conversation, command: Command, parsed: Any, now_ms: int, facts: Facts
    ) -> Decision[ChatEvent]:
        by, at = command.actor.by, rfc3339(now_ms)
        match parsed:
            case Send():
                self._message(state, parsed.reply_to, facts, "reply_to")
                require_own(parsed.attachments, command.actor.id, "chat", facts, "attachments")
                text, masked, original = _hide(state, parsed.text)
                posted = MessagePosted(command.command_id, by, at, text, parsed.attachments, parsed.reply_to)
                if original is not None:
                    posted = replace(posted, masked=masked, private=original)
                return Decision([posted])
            case Receipt():
                return Decision(self._receipt(state, command, parsed, at))
            case Card():
                return Decision([MessagePosted(command.command_id, by, at, parsed.text, card=parsed.card)])
            case Open():
                return Decision(self._open(state, command, parsed, at, facts))
            case Edit():
                found = self._own(state, command, parsed.message_id, facts)
                if found.deleted:
                    raise Refusal(Code.CONFLICT, "the message has been deleted")
                if found.edits >= MAX_EDITS:
                    raise Refusal(Code.CONFLICT, f"a message is edited at most {MAX_EDITS} times")
                text, masked, original = _hide(state, parsed.text)
                return Decision([MessageEdited(parsed.message_id, by, at, text, masked, private=original)])
            case Delete():
                found = self._own(state, command, parsed.message_id, facts)
                # A stored state may hold what the message hid: the one of this turn takes its place.
                deleted: list[ChatEvent] = [] if found.deleted else [MessageDeleted(parsed.message_id, by, at)]
                return Decision(deleted, snapshot=state.order_id is not None)
            case React():
                if self._message(state, parsed.message_id, facts, "message_id").deleted:
                    raise Refusal(Code.CONFLICT, "the message has been deleted")
                return Decision([MessageReacted(parsed.message_id, by, at, parsed.emoji, parsed.on)])
            case AddMember() | RemoveMember() | Leave():
                return Decision(self._member(state, command, parsed, at, facts))
            case Block() | Unblock():
                return Decision(self._block(state, command, parsed, at))
            case RevealContacts():
                return Decision(_reveal(state, by, at))
        raise AssertionError(f"unhandled command {parsed!r}")

    def _open(self, state: Conversation, command: Command, parsed: Open, at: str, facts: Facts) -> list[ChatEvent]:
        by_system, user = command.actor.kind == "system", command.actor.id
        if state.version:
            raise Refusal(Code.IDEMPOTENCY_MISMATCH, "this conversation exists already")
        if parsed.order_id is not None and not by_system:
            raise invalid("order_id", "forbidden", "an order's conversations are made by the order")
        if not by_system and user not in parsed.member_ids:
            raise invalid("member_ids", "invalid", "you must be a member of a conversation that you open")
        if not by_system and any(facts.blocks(member, user) for member in parsed.member_ids):
            raise Refusal(Code.FORBIDDEN, "somebody whom you name has blocked you")
        joined = [
            MemberJoined(command.actor.by, at, member, parsed.order_id if n == 0 else None)
            for n, member in enumerate(parsed.member_ids)
        ]
        blocked = [member for member in parsed.member_ids if not by_system and facts.blocks(user, member)]
        return [*joined, *(MemberBlocked(command.actor.by, at, member, True) for member in blocked)]

    def _member(
        self, state: Conversation, command: Command, parsed: AddMember | RemoveMember | Leave, at: str, facts: Facts
    ) -> list[ChatEvent]:
        by, user = command.actor.by, command.actor.id
        named = user if isinstance(parsed, Leave) else parsed.user_id
        if isinstance(parsed, AddMember) == (named in state.members):
            return []
        if isinstance(parsed, AddMember):
            self._check_add(state, command.actor, named, facts)
            return [MemberJoined(by, at, named)]
        if command.actor.kind != "system" and user not in (named, state.opened_by):
            raise Refusal(Code.FORBIDDEN, "who opened the conversation takes others out of it")
        return [MemberLeft(by, at, named)]

    def _check_add(self, state: Conversation, actor: Actor, user_id: str, facts: Facts) -> None:
        if len(state.members) >= MAX_MEMBERS:
            raise invalid("user_id", "too_many", f"a conversation has at most {MAX_MEMBERS} members")
        if actor.kind == "system":
            return
        if facts.account(user_id) is None:
            raise invalid("user_id", "unknown", "there is no such user")
        if facts.blocks(user_id, actor.id):
            raise Refusal(Code.FORBIDDEN, "this user has blocked you")

    def _block(self, state: Conversation, command: Command, parsed: Block | Unblock, at: str) -> list[ChatEvent]:
        user, on = command.actor.id, isinstance(parsed, Block)
        if parsed.user_id == user:
            raise invalid("user_id", "invalid", "nobody blocks themselves")
        # Of somebody who is gone there is nothing to be heard: no event, and no fault of who asks.
        known = user in state.members and parsed.user_id in state.members
        if not known or on == (parsed.user_id in state.blocks.get(user, ())):
            return []
        return [MemberBlocked(command.actor.by, at, parsed.user_id, on)]

    def _receipt(self, state: Conversation, command: Command, parsed: Receipt, at: str) -> list[ChatEvent]:
        user, device, offset = command.actor.id, command.actor.session_id, parsed.offset
        member = state.members.get(user)
        if member is None:
            raise Refusal(Code.FORBIDDEN, "only members leave receipts")
        if offset > state.version:
            raise invalid("offset", "invalid", f"the conversation ends at offset {state.version}")
        read, delivered = (offset, 0) if command.name == "receipt.read" else (0, offset)
        after = marked(member, device, read=read, delivered=delivered)
        if after is member:
            return []
        own = offset if device else 0
        if command.name == "receipt.read":
            return [ReceiptRead(user, at, after.read_offset, device, own)]
        return [ReceiptDelivered(user, at, after.delivered_offset, device, own)]

    def _message(self, state: Conversation, message_id: str | None, facts: Facts, field: str) -> MessageFact:
        if message_id is None:
            return MessageFact("", 0)
        recent = state.recent.get(message_id)
        if recent is not None:
            return MessageFact(recent.by, recent.offset, recent.deleted, recent.edits)
        found = facts.message(state.id, message_id)
        if found is None and field == "message_id":
            raise Refusal(Code.NOT_FOUND, "there is no such message in this conversation")
        if found is None:
            raise invalid(field, "unknown", "there is no such message in this conversation")
        return found

    def _own(self, state: Conversation, command: Command, message_id: str, facts: Facts) -> MessageFact:
        found = self._message(state, message_id, facts, "message_id")
        if found.by != command.actor.by and command.actor.kind != "system":
            raise Refusal(Code.FORBIDDEN, "this message was written by somebody else")
        return found

    # --- what is remembered -------------------------------------------------------------------------------------------

    def evolve(self, state: Conversation, event: ChatEvent, offset: int) -> Conversation:
        state.version = offset
        match event:
            case MessagePosted():
                if len(state.recent) >= RECENT:
                    del state.recent[next(iter(state.recent))]
                state.recent[event.message_id] = RecentMessage(event.by, offset)
                if event.private is not None:
                    keep_original(state, event.message_id, event.private)
            case ReceiptRead() | ReceiptDelivered():
                take_receipt(state, event)
            case MessageEdited():
                recent = state.recent.get(event.message_id)
                if recent is not None:
                    state.recent[event.message_id] = replace(recent, edits=recent.edits + 1)
                if event.private is not None or event.message_id in state.masked:
                    keep_original(state, event.message_id, event.private)
            case MessageDeleted():
                recent = state.recent.get(event.message_id)
                if recent is not None:
                    state.recent[event.message_id] = replace(recent, deleted=True)
                forget_original(state, event.message_id)
            case MemberJoined() | MemberLeft() | MemberBlocked():
                change_members(state, event, offset)
            case ContactsRevealed():
                state.contacts_revealed = True
                state.masked = {}
            case MessageReacted() | MessageRevealed():
                pass
        return state

    def fork(self, state: Conversation) -> Conversation:
        return replace(
            state,
            members=dict(state.members),
            recent=dict(state.recent),
            blocks=dict(state.blocks),
            masked=dict(state.masked),
        )

    def is_over(self, state: Conversation) -> bool:
        return False

    def version(self, state: Conversation) -> int:
        return state.version

    def epoch(self, state: Conversation) -> str:
        return state.epoch

    def view(self, state: Conversation, actor: Actor, facts: Facts) -> bytes | None:
        if state.version == 0 or not self.may_read(state, actor, facts):
            return None
        member = state.members.get(actor.id, Member(0))
        body: dict[str, Any] = {
            "id": state.id,
            "members": list(state.members),
            "offset": state.version,
            "read_offset": member.read_offset,
            "delivered_offset": member.delivered_offset,
            "joined_offset": member.joined_offset,
            "watermarks": [_watermarks(user, standing) for user, standing in state.members.items()],
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

    # --- as bytes -----------------------------------------------------------------------------------------------------

    def event_type(self, event: ChatEvent) -> str:
        return str(event.__struct_config__.tag)

    def encode_event(self, event: ChatEvent) -> bytes:
        return events.encode(event)

    def decode_event(self, body: bytes) -> ChatEvent:
        return events.decode(body)

    def publication(self, body: bytes) -> bytes:
        return events.public(body)

    def encode_state(self, state: Conversation) -> bytes:
        return _encoder.encode(state)

    def decode_state(self, body: bytes) -> Conversation:
        return _state_decoder.decode(body)


CHAT: Final = ChatRules()


def _hide(state: Conversation, text: str | None) -> tuple[str | None, tuple[str, ...], Original | None]:
    """The text as everybody may read it, what is hidden in it, and what it was: until an order reveals contacts."""
    if text is None or state.order_id is None or state.contacts_revealed:
        return text, (), None
    found = mask(text)
    return (found.text, found.kinds, Original(len(text), text)) if found.kinds else (text, (), None)


def _reveal(state: Conversation, by: str, at: str) -> list[ChatEvent]:
    if state.order_id is None or state.contacts_revealed:
        return []
    hidden = [(message_id, original.text) for message_id, original in state.masked.items() if original.text]
    return [ContactsRevealed(by, at), *(MessageRevealed(message_id, by, at, text) for message_id, text in hidden)]


def _watermarks(user: str, member: Member) -> dict[str, Any]:
    return {
        "user_id": user,
        "read_offset": member.read_offset,
        "delivered_offset": member.delivered_offset,
        "devices": [
            {"device": device, "read_offset": read, "delivered_offset": delivered}
            for device, (read, delivered) in member.devices.items()
        ],
    }


class TypingPayload(msgspec.Struct, frozen=True):
    on: bool


def typing(actor: Actor, payload: bytes) -> bytes:
    """The publication data for a typing signal.

    Raises:
        msgspec.ValidationError, msgspec.DecodeError: the payload is not `{"on": bool}`.
    """
    return _encoder.encode(Typing(actor.id, msgspec.json.decode(payload, type=TypingPayload).on))
