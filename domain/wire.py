"""What clients ask and tell over the WebSocket beside the protocol's own frames: rpc and `send`.

One struct per shape, and tables that name them. What a channel publishes is defined with its stream's events.
"""

from typing import Any, Final

import msgspec

# --- rpc: data in ------------------------------------------------------------------------------------------------


class SendMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Say something in a conversation. `id` is made by the client and becomes the message's id."""

    conversation_id: str
    id: str
    text: str | None = None
    attachments: tuple[str, ...] = ()
    reply_to: str | None = None


class EditMessage(msgspec.Struct, frozen=True):
    """Replace the text of one's own message. `id` is that of this write."""

    conversation_id: str
    id: str
    message_id: str
    text: str


class DeleteMessage(msgspec.Struct, frozen=True):
    """Take back one's own message; it stays in its place without its text."""

    conversation_id: str
    id: str
    message_id: str


class ReactToMessage(msgspec.Struct, frozen=True):
    """Set (`on`) or take back a reaction."""

    conversation_id: str
    id: str
    message_id: str
    emoji: str
    on: bool


class AddMember(msgspec.Struct, frozen=True):
    """Make a user a member. Any member may, except in an order's conversations. `id` is that of this write."""

    conversation_id: str
    id: str
    user_id: str


class RemoveMember(msgspec.Struct, frozen=True):
    """Take a member out; for who opened the conversation."""

    conversation_id: str
    id: str
    user_id: str


class LeaveConversation(msgspec.Struct, frozen=True):
    """Be a member no more; nothing of the conversation can be read afterwards."""

    conversation_id: str
    id: str


class SetReceipt(msgspec.Struct, frozen=True):
    """Everything up to `offset` was read, or has reached a device. Watermarks only ever move forward."""

    conversation_id: str
    offset: int


class OrderCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """A command to an order; `payload` depends on it. `expected_version` makes it conditional."""

    order_id: str
    command: str
    command_id: str
    expected_version: int | None = None
    payload: dict[str, Any] = {}


class PresenceRequest(msgspec.Struct, frozen=True):
    """Who of these users is online? At most 100."""

    user_ids: tuple[str, ...]


class SyncRequest(msgspec.Struct, frozen=True):
    """Nothing: the answer is about the caller."""


class WriteStatusRequest(msgspec.Struct, frozen=True):
    """Did the write `id` land in `stream` (a channel name)? Asked after an unknown outcome."""

    stream: str
    id: str


# --- rpc: result out ---------------------------------------------------------------------------------------------


class Written(msgspec.Struct, frozen=True):
    """The write is durable: its offset in the stream and its time. `replayed`: it had landed before."""

    offset: int
    at: str
    replayed: bool


class ReceiptSet(msgspec.Struct, frozen=True):
    """An empty object."""


class OrderCommandResult(msgspec.Struct, frozen=True):
    """The order as the caller may see it now, and the command's events, each with its offset."""

    order: dict[str, Any]
    events: tuple[dict[str, Any], ...]
    replayed: bool


class ConversationHead(msgspec.Struct, frozen=True):
    """Where a conversation stands, and what the caller has read of it."""

    id: str
    offset: int
    read_offset: int
    unread: int


class OrderHead(msgspec.Struct, frozen=True):
    """Where an order stands."""

    id: str
    offset: int
    state: str


class SyncResult(msgspec.Struct, frozen=True):
    """What a device compares with what it has: latest conversations, and orders that are not closed."""

    conversations: tuple[ConversationHead, ...]
    orders: tuple[OrderHead, ...]


class DevicePresence(msgspec.Struct, frozen=True):
    """A device that is connected, and since when."""

    device: str
    since: str


class UserPresence(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether a user is online, and on which devices. `last_seen_at` only while they are not, and where it is remembered.

    Of a user with whom the caller shares no conversation: offline, and nothing more.
    """

    user_id: str
    online: bool
    devices: tuple[DevicePresence, ...]
    last_seen_at: str | None = None


class PresenceList(msgspec.Struct, frozen=True):
    """The users in the order in which they were asked for."""

    users: tuple[UserPresence, ...]


class WriteStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the write has landed, and at which offset."""

    known: bool
    offset: int | None = None


RPC_METHODS: Final[dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct]]]] = {
    "message.send": (SendMessage, Written),
    "message.edit": (EditMessage, Written),
    "message.delete": (DeleteMessage, Written),
    "message.react": (ReactToMessage, Written),
    "member.add": (AddMember, Written),
    "member.remove": (RemoveMember, Written),
    "conversation.leave": (LeaveConversation, Written),
    "receipt.read": (SetReceipt, ReceiptSet),
    "receipt.delivered": (SetReceipt, ReceiptSet),
    "order.command": (OrderCommand, OrderCommandResult),
    "presence.get": (PresenceRequest, PresenceList),
    "sync": (SyncRequest, SyncResult),
    "write.status": (WriteStatusRequest, WriteStatus),
}
"""Method name → (data, result)."""


# --- send: no reply ----------------------------------------------------------------------------------------------


class SendTyping(msgspec.Struct, frozen=True, tag="typing"):
    """The caller is writing, or has stopped."""

    conversation_id: str
    on: bool


class Fix(msgspec.Struct, frozen=True, omit_defaults=True):
    """One observation of a device: WGS84 degrees, metres, metres a second, degrees from north."""

    at: str
    lat: float
    lon: float
    accuracy_m: float
    speed_mps: float | None = None
    heading_deg: float | None = None


class SendFixes(msgspec.Struct, frozen=True, tag="fix"):
    """Where the worker of an order is; several after an offline stretch, oldest first."""

    order_id: str
    fixes: tuple[Fix, ...]


SEND_TYPES: Final[dict[str, type[msgspec.Struct]]] = {"typing": SendTyping, "fix": SendFixes}
"""`type` of a `send` → its data."""
