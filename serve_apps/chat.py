"""Conversations: lists, messages as they read today, and the raw stream."""

from typing import Any

import msgspec

from domain.chat import MAX_MEMBERS
from domain.errors import invalid
from domain.ids import derived_uuid7, uuid7_ms
from domain.ports import ConversationRow, MessageRow
from domain.times import rfc3339
from serve_apps.endpoint import Body, Call, Endpoint, Rule, endpoint
from serve_apps.schemas import (
    After,
    ConversationItem,
    Event,
    Items,
    Listing,
    MessageQuery,
    MessageView,
    OpenConversation,
    OpenedConversation,
    SendMessage,
    Sent,
    Stream,
    clamped,
)
from serve_apps.streams import attach, event_page, page_of, with_replayed

_LIST_MOST = 100
_MESSAGES_MOST = 200


@endpoint("GET", "/v1/conversations", tag="conversations", rule=Rule.OWNER)
async def list_conversations(call: Call, query: Listing) -> Body[Items[ConversationItem]]:
    """The caller's conversations, latest activity first."""
    limit = clamped(query.limit, _LIST_MOST)
    page = await call.services.read_models.conversations(call.caller.user_id, query.cursor, limit)
    items = (msgspec.Raw(msgspec.json.encode(_item(row))) for row in page.items)
    return Body(page_of(items, page.next_cursor))


def _item(row: ConversationRow) -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": row.id,
        "members": row.members,
        "offset": row.offset,
        "read_offset": row.read_offset,
        "unread": row.unread,
        "last_message": None if row.last_message is None else msgspec.Raw(row.last_message),
        "updated_at": rfc3339(row.updated_at),
    }
    return item if row.order_id is None else item | {"order_id": row.order_id}


@endpoint("POST", "/v1/conversations", tag="conversations", rule=Rule.USER, status=201, keyed=True)
async def open_conversation(call: Call, body: OpenConversation) -> Body[OpenedConversation]:
    """Open a conversation with other users. The caller is always a member."""
    caller_id = call.caller.user_id
    members = sorted({*body.member_ids, caller_id})
    if len(members) < 2:
        raise invalid("member_ids", "invalid", "name at least one other user")
    if len(members) > MAX_MEMBERS:
        raise invalid("member_ids", "too_many", f"a conversation has at most {MAX_MEMBERS} members")
    known = await call.services.accounts.get(members)
    missing = [member for member in members if member not in known]
    if missing:
        raise invalid("member_ids", "unknown", f"there is no user {missing[0]}")
    key = call.write_id(body.id)
    stream_id = body.id or new_stream_id(call, "conversation", key)
    accepted = await call.command("conversation", stream_id, "open", key or stream_id, {"member_ids": members})
    viewed = await call.view("conversation", stream_id)
    return Body(with_replayed(viewed.body, accepted))


def new_stream_id(call: Call, kind: str, key: str | None) -> str:
    """A new id; one that depends on the caller and `Idempotency-Key` alone where there is one, so that a retry finds it."""
    if key is None:
        return call.services.new_id()
    return derived_uuid7(uuid7_ms(key) or 0, f"{kind}/{call.caller.user_id}/{key}", like=key)


@endpoint(
    "GET",
    "/v1/conversations/{conversation_id}/messages",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
)
async def list_messages(call: Call, query: MessageQuery, conversation_id: str) -> Body[Stream[MessageView]]:
    """Messages with their edits applied: newest first, or with `after` oldest first."""
    await attach(call, "conversation", conversation_id)
    if query.before is not None and query.after is not None:
        raise invalid("after", "invalid", "give before or after, not both")
    limit = clamped(query.limit, _MESSAGES_MOST)
    rows, cursor = await call.services.read_models.messages(
        conversation_id, before=query.before, after=query.after, limit=limit
    )
    return Body(page_of((message_view(row) for row in rows), cursor))


def message_view(row: MessageRow) -> msgspec.Raw:
    """A message as it reads now: edited where it was edited, without its content where it was deleted."""
    view: dict[str, Any] = msgspec.json.decode(row.data)
    view.pop("type", None)
    view["offset"] = row.offset
    if row.deleted_at is not None:
        for content in ("text", "attachments", "card"):
            view.pop(content, None)
        view["deleted"] = True
        view["deleted_at"] = rfc3339(row.deleted_at)
    elif row.edited_at is not None:
        view["text"] = row.text
        view["edited_at"] = rfc3339(row.edited_at)
    if row.reactions and row.deleted_at is None:
        view["reactions"] = row.reactions
    return msgspec.Raw(msgspec.json.encode(view))


@endpoint(
    "POST",
    "/v1/conversations/{conversation_id}/messages",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
    keyed=True,
)
async def send_message(call: Call, body: SendMessage, conversation_id: str) -> Sent:
    """Say something, as `message.send` on the WebSocket; the same id sent by both is one message."""
    message_id = call.write_id(body.id)
    if message_id is None:
        await attach(call, "conversation", conversation_id)
        raise invalid("id", "required", "give the message an id, or send the header Idempotency-Key")
    payload = {"text": body.text, "attachments": body.attachments, "reply_to": body.reply_to}
    accepted = await call.command("conversation", conversation_id, "send", message_id, payload)
    return Sent(accepted.offset, rfc3339(accepted.at), accepted.replayed)


@endpoint(
    "GET",
    "/v1/conversations/{conversation_id}/events",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
)
async def conversation_events(call: Call, query: After, conversation_id: str) -> Body[Stream[Event]]:
    """The raw stream: every event after an offset."""
    return Body(await event_page(call, "conversation", conversation_id, query))


ENDPOINTS: tuple[Endpoint, ...] = (
    list_conversations,
    open_conversation,
    list_messages,
    send_message,
    conversation_events,
)
