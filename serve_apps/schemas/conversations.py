"""Conversations, messages, search, mutes and blocks."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import chat
from domain.search import MAX_QUERY
from serve_apps.schemas.common import Cursor, Limit, Offset, Timestamp, Uuid


class OpenConversation(msgspec.Struct):
    """Users to talk with; the caller is added."""

    member_ids: Annotated[list[Uuid], Meta(min_length=1, max_length=chat.MAX_MEMBERS)]
    id: Uuid | None = None


class ConversationView(msgspec.Struct):
    """A conversation as its members see it."""

    id: Uuid
    members: list[Uuid]
    offset: int
    read_offset: int
    order_id: Uuid | UnsetType = UNSET


class DeviceWatermark(msgspec.Struct):
    """How far one session of a member is."""

    device: str
    read_offset: int
    delivered_offset: int


class Watermark(msgspec.Struct):
    """How far a member is, which is as far as the furthest of their devices; the last eight of these."""

    user_id: Uuid
    read_offset: int
    delivered_offset: int
    devices: list[DeviceWatermark]


class ConversationStanding(ConversationView, kw_only=True):
    """A conversation and how far everybody is in it."""

    joined_offset: int
    delivered_offset: int
    watermarks: list[Watermark]


class ConversationDetails(ConversationStanding, kw_only=True):
    """A conversation, how far everybody is in it, and how many messages of other people the caller has not read."""

    unread: int


class OpenedConversation(ConversationStanding, kw_only=True):
    """The conversation that was opened; `replayed` if this id had opened it before."""

    replayed: bool


class ConversationItem(ConversationView, kw_only=True):
    """A conversation in a list; `last_message` is the newest message as it was posted."""

    unread: int
    last_message: dict[str, Any] | None
    updated_at: Timestamp
    muted: bool
    muted_until: Timestamp | UnsetType = UNSET


class MessageQuery(msgspec.Struct):
    before: Offset | None = None
    after: Offset | None = None
    limit: Limit = 50


class MessageView(msgspec.Struct):
    """A message as it reads now; a deleted one stays without its content.

    `masked`: the kinds of contact details that an order hides yet; the author is shown the text as it was written.
    """

    message_id: Uuid
    by: str
    at: Timestamp
    offset: int
    text: str | UnsetType = UNSET
    attachments: list[str] | UnsetType = UNSET
    reply_to: str | UnsetType = UNSET
    card: dict[str, Any] | UnsetType = UNSET
    masked: list[str] | UnsetType = UNSET
    edited_at: Timestamp | UnsetType = UNSET
    deleted: bool | UnsetType = UNSET
    deleted_at: Timestamp | UnsetType = UNSET
    reactions: dict[str, list[str]] | UnsetType = UNSET


class MessageVersionView(msgspec.Struct):
    """What a message said from `at` on, and the offset of the event that said it."""

    at: Timestamp
    offset: int
    text: str | UnsetType = UNSET


class MessageHistory(msgspec.Struct):
    """Every text of a message, oldest first; none once it is deleted."""

    items: list[MessageVersionView]


class AddMember(msgspec.Struct):
    """Who is to become a member; `id` names this write, unless the header `Idempotency-Key` does."""

    user_id: Uuid
    id: Uuid | None = None


class SendMessage(chat.Send, frozen=True):
    """A message; `id` names it, unless the header `Idempotency-Key` does."""

    id: Uuid | None = None


class Sent(msgspec.Struct):
    """Where the message, or the change, stands in its conversation, now and in every repetition."""

    offset: int
    at: Timestamp
    replayed: bool


class SearchQuery(msgspec.Struct):
    q: Annotated[str, Meta(min_length=1, max_length=MAX_QUERY, description="What the messages say.")]
    cursor: Cursor | None = None
    limit: Limit = 20


class MuteRequest(msgspec.Struct):
    """`until` is left out for ever."""

    until: Timestamp | None = None


class MuteView(msgspec.Struct):
    """Without `muted_until` it is for ever."""

    muted: Literal[True]
    muted_until: Timestamp | UnsetType = UNSET


class BlockView(msgspec.Struct):
    """A user whom the caller has blocked, and when."""

    user_id: Uuid
    at: Timestamp
