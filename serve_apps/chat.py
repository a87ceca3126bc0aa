"""Conversations: lists, messages as they read today, and the raw stream."""

from typing import Any

import msgspec

from domain.chat import MAX_MEMBERS
from domain.errors import Code, Refusal, invalid
from domain.ids import derived_uuid7, uuid7_ms
from domain.ports import ConversationRow, MessageRow
from domain.times import rfc3339
from serve_apps.endpoint import Body, Call, Endpoint, Rule, endpoint
from serve_apps.mutes import mutes_of
from serve_apps.schemas.common import After, Items, Listing, Stream, clamped
from serve_apps.schemas.conversations import (
    AddMember,
    ConversationDetails,
    ConversationItem,
    MessageHistory,
    MessageQuery,
    MessageVersionView,
    MessageView,
    OpenConversation,
    OpenedConversation,
    SendMessage,
    Sent,
)
from serve_apps.schemas.orders import Event
from serve_apps.streams import attach, event_page, page_of, with_replayed

_LIST_MOST = 100
_MESSAGES_MOST = 200


@endpoint("GET", "/v1/conversations", tag="conversations", rule=Rule.OWNER)
async def list_conversations(call: Call, query: Listing) -> Body[Items[ConversationItem]]:
    """The caller's conversations, latest activity first."""
    limit = clamped(query.limit, _LIST_MOST)
    page = await call.services.read_models.conversations(call.caller.user_id, query.cursor, limit)
    mutes = await mutes_of(call, page.items)
    items = (msgspec.Raw(msgspec.json.encode(_item(row) | mutes[row.id])) for row in page.items)
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


@endpoint("GET", "/v1/conversations/{conversation_id}", tag="conversations", rule=Rule.MEMBER, stream="conversation")
async def read_conversation(call: Call, conversation_id: str) -> Body[ConversationDetails]:
    """A conversation: its members, and how far each of them and their devices are."""
    viewed = await call.view("conversation", conversation_id)
    standing = msgspec.json.decode(viewed.body, type=_Standing)
    after = max(standing.read_offset, standing.joined_offset)
    unread = 0
    if standing.offset > after:
        unread = await call.services.read_models.unread(conversation_id, call.caller.user_id, after)
    return Body(viewed.body[:-1] + b',"unread":%d}' % unread)


class _Standing(msgspec.Struct):
    offset: int
    read_offset: int
    joined_offset: int = 0


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
    return Body(page_of((message_view(row, call.caller.user_id) for row in rows), cursor))


def message_view(row: MessageRow, viewer: str = "") -> msgspec.Raw:
    """A message as it reads now to the viewer: with its newest text, or without its content where it was deleted."""
    view: dict[str, Any] = msgspec.json.decode(row.data)
    for name in ("type", "text", "masked", "erased"):
        view.pop(name, None)
    view["offset"] = row.offset
    if row.deleted_at is not None:
        for content in ("attachments", "card", "reply_to"):
            view.pop(content, None)
        view["deleted"] = True
        view["deleted_at"] = rfc3339(row.deleted_at)
        return msgspec.Raw(msgspec.json.encode(view))
    if (text := _text_for(viewer, view["by"], row.text, row.original)) is not None:
        view["text"] = text
    if row.masked:
        view["masked"] = row.masked
    if row.edited_at is not None:
        view["edited_at"] = rfc3339(row.edited_at)
    if row.reactions:
        view["reactions"] = row.reactions
    return msgspec.Raw(msgspec.json.encode(view))


def _text_for(viewer: str, author: str, text: str | None, original: str | None) -> str | None:
    """What hides contact details from others hides nothing from its author."""
    return original if original is not None and viewer == author else text


@endpoint(
    "GET",
    "/v1/conversations/{conversation_id}/messages/{message_id}/history",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
)
async def message_history(call: Call, conversation_id: str, message_id: str) -> MessageHistory:
    """Every text that a message had, oldest first. Nothing of a deleted one."""
    await attach(call, "conversation", conversation_id)
    versions = await call.services.read_models.history(conversation_id, message_id)
    if versions is None:
        raise Refusal(Code.NOT_FOUND, "there is no such message in this conversation")
    items = []
    for version in versions:
        text = _text_for(call.caller.user_id, version.by, version.text, version.original)
        shown = msgspec.UNSET if text is None else text
        items.append(MessageVersionView(rfc3339(version.at), version.offset, shown))
    return MessageHistory(items)


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
    payload = {"text": body.text, "attachments": body.attachments, "reply_to": body.reply_to}
    return await _write(call, conversation_id, "send", body.id, payload)


async def _write(call: Call, conversation_id: str, name: str, given: str | None, payload: dict[str, Any]) -> Sent:
    command_id = call.write_id(given)
    if command_id is None:
        await attach(call, "conversation", conversation_id)
        raise invalid("id", "required", "give the write an id, or send the header Idempotency-Key")
    accepted = await call.command("conversation", conversation_id, name, command_id, payload)
    return Sent(accepted.offset, rfc3339(accepted.at), accepted.replayed)


@endpoint(
    "POST",
    "/v1/conversations/{conversation_id}/members",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
    keyed=True,
)
async def add_member(call: Call, body: AddMember, conversation_id: str) -> Sent:
    """Make another user a member. Any member may; an order's conversations have the members that the order has."""
    return await _write(call, conversation_id, "member.add", body.id, {"user_id": body.user_id})


@endpoint(
    "DELETE",
    "/v1/conversations/{conversation_id}/members/{user_id}",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
    keyed=True,
)
async def remove_member(call: Call, conversation_id: str, user_id: str) -> Sent:
    """Take a member out of the conversation, or leave it oneself. Who opened it may take out others."""
    if user_id == call.caller.user_id:
        return await _write(call, conversation_id, "leave", None, {})
    return await _write(call, conversation_id, "member.remove", None, {"user_id": user_id})


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
    read_conversation,
    list_messages,
    message_history,
    send_message,
    add_member,
    remove_member,
    conversation_events,
)
