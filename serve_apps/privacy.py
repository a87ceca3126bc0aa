"""What is stored about the caller: all of it to take along, and the end of it."""

import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from domain.acts import OK, Deed
from domain.erasure import Membership, Written
from domain.errors import Code, Refusal, invalid
from domain.ids import is_uuid
from domain.places import Place
from domain.ports import DeviceSession
from domain.times import rfc3339
from serve_apps.api_keys import api_key_view
from serve_apps.audited import act_of, write_after
from serve_apps.auth import announce, session_view
from serve_apps.blocks import block_view
from serve_apps.device_keys import device_key_view
from serve_apps.endpoint import Body, Call, Endpoint, Rule, endpoint
from serve_apps.me import me_view
from serve_apps.orders import projected, track_point
from serve_apps.schemas.auth import IdentityView
from serve_apps.schemas.common import Point
from serve_apps.schemas.export import (
    Export,
    ExportedAccount,
    ExportedConversation,
    ExportedFactor,
    ExportedMessage,
    ExportedSession,
    ExportedTrack,
    ExportedUpload,
    ExportRequest,
)
from serve_apps.schemas.people import Erasing
from serve_apps.verification import document_view

_MESSAGES: Final = 100
_CONVERSATIONS: Final = 100
_ORDERS: Final = 20
_POSITIONS: Final = 2_000
_BLOCKS: Final = 100
_UPLOADS: Final = 200
_PAGE_BYTES: Final = 256 * 1024
"""A page ends with the message that reaches this; one message is at most about 3 MB, all that it ever said."""


class _Place(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Where the next page begins: `key` is the conversation or order before, or a cursor of a list; `after` within it."""

    part: str
    key: str = ""
    after: int = 0


_PARTS: Final = ("messages", "conversations", "customer", "worker", "tracks", "blocks", "uploads")
"""In this order."""


@endpoint("POST", "/v1/me/export", tag="people", rule=Rule.OWNER)
async def export_me(call: Call, body: ExportRequest) -> Body[Export]:
    """What is stored about the caller, a page at a time: the account, what they wrote, orders, trips, blocks, uploads."""
    if body.cursor is None:
        page: dict[str, Any] = {"account": await _account(call)}
        following: _Place | None = _Place(_PARTS[0])
    else:
        place = _place_of(body.cursor)
        page, following = await _READERS[place.part](call, place)
        if following is None and place.part != _PARTS[-1]:
            following = _Place(_PARTS[_PARTS.index(place.part) + 1])
    if following is not None:
        page["next_cursor"] = base64.urlsafe_b64encode(msgspec.json.encode(following)).decode().rstrip("=")
    return Body(msgspec.json.encode(page))


def _place_of(cursor: str) -> _Place:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=_Place)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise invalid("cursor", "invalid", "this is not a cursor of an export") from None
    by_id = place.part in ("messages", "conversations", "tracks", "uploads")
    known = place.part in _PARTS and (not by_id or not place.key or is_uuid(place.key))
    if not known or not 0 <= place.after < 1 << 53:
        raise invalid("cursor", "invalid", "this is not a cursor of an export")
    return place


async def _account(call: Call) -> ExportedAccount:
    user, current = await call.user(), call.caller.session_id
    sessions = await call.services.sessions.list_of(user.id)
    documents = await call.services.worker_documents.list_of(user.id)
    linked = await call.services.identities.list_of(user.id)
    return ExportedAccount(
        me_view(call, user),
        user.phone,
        [_session(item, current) for item in sessions],
        [IdentityView(item.provider, rfc3339(item.linked_at)) for item in linked],
        [device_key_view(key) for key in await call.services.device_keys.list_of(user.id)],
        [api_key_view(key) for key in await call.services.api_keys.list_of(user.id)],
        await _second_factor(call, user.id),
        [document_view(item, call.now_ms()) for item in documents],
    )


def _session(session: DeviceSession, current: str) -> ExportedSession:
    seen, near = session.seen, UNSET if session.seen.place.lat is None else _near(session.seen.place)
    return ExportedSession(
        **msgspec.structs.asdict(session_view(session, current)),
        last_seen_at_ip=seen.ip or UNSET,
        user_agent=seen.agent or UNSET,
        last_seen_near=near,
        confirmed_at=rfc3339(session.confirmed_at) if session.confirmed_at else UNSET,
        second_factor_at=rfc3339(session.second_factor_at) if session.second_factor_at else UNSET,
        device_key_id=session.device_key_id or UNSET,
        ended_at=UNSET if session.revoked_at is None else rfc3339(session.revoked_at),
    )


def _near(place: Place) -> Point | UnsetType:
    return UNSET if place.lat is None or place.lon is None else Point(place.lat, place.lon)


async def _second_factor(call: Call, user_id: str) -> ExportedFactor | UnsetType:
    try:
        secret = await call.services.totp.get(user_id)
    except Refusal:  # one that nobody can read any more: nothing of it is known
        return UNSET
    if secret is None:
        return UNSET
    confirmed = UNSET if secret.confirmed_at is None else rfc3339(secret.confirmed_at)
    return ExportedFactor(rfc3339(secret.created_at), confirmed)


async def _messages(call: Call, place: _Place) -> tuple[dict[str, Any], _Place | None]:
    """The next messages, of at most so many conversations: most hold nothing of the caller's."""
    found: list[ExportedMessage] = []
    size = 0
    async for conversation_id, written in _written(call, place):
        place = _Place("messages", conversation_id, (1 << 53) - 1 if written is None else written.offset)
        if written is not None:
            found.append(await _message(call, conversation_id, written))
            size += len(msgspec.json.encode(found[-1]))
        if len(found) == _MESSAGES or size >= _PAGE_BYTES:
            return {"messages": found}, place
    more = await call.services.erasures.conversations(call.caller.user_id, place.key, 1)
    return {"messages": found}, place if more else None


async def _written(call: Call, place: _Place) -> AsyncIterator[tuple[str, Written | None]]:
    """What the caller wrote from that place on, and after each conversation None."""
    user_id, erasures = call.caller.user_id, call.services.erasures
    rest = await erasures.conversations(user_id, place.key, _CONVERSATIONS)
    for conversation_id in [place.key, *rest] if place.key else rest:
        after = place.after if conversation_id == place.key else 0
        for written in await erasures.messages(user_id, conversation_id, after, _MESSAGES):
            yield conversation_id, written
        yield conversation_id, None


async def _message(call: Call, conversation_id: str, written: Written) -> ExportedMessage:
    posted: dict[str, Any] = msgspec.json.decode(written.body)
    versions = await call.services.read_models.history(conversation_id, written.message_id) or []
    said = (item.text if item.original is None else item.original for item in versions)
    return ExportedMessage(
        conversation_id,
        written.message_id,
        written.offset,
        posted["at"],
        [text for text in said if text is not None],
        posted.get("attachments") or [],
        posted.get("reply_to") or msgspec.UNSET,
    )


async def _orders(call: Call, place: _Place) -> tuple[dict[str, Any], _Place | None]:
    """The next orders in one of the caller's roles, each as the caller may see it: with their quotes and ratings."""
    user = await call.user()
    page = await call.services.read_models.orders(user.id, place.part, None, place.key or None, _ORDERS)
    views = (projected(call.services.orders, snapshot, call.actor, user) for snapshot in page.items)
    found = {"orders": [msgspec.Raw(view) for view in views if view is not None]}
    if page.next_cursor is not None:
        return found, _Place(place.part, page.next_cursor)
    return found, None


async def _conversations(call: Call, place: _Place) -> tuple[dict[str, Any], _Place | None]:
    """The next conversations that the caller is or was in."""
    found = await call.services.erasures.memberships(call.caller.user_id, place.key, _CONVERSATIONS)
    following = _Place(place.part, found[-1].conversation_id) if len(found) == _CONVERSATIONS else None
    return {"conversations": [_conversation(item) for item in found]}, following


def _conversation(item: Membership) -> ExportedConversation:
    until: str | UnsetType | None = UNSET
    if item.muted_until_ms is not None:
        until = rfc3339(item.muted_until_ms) if item.muted_until_ms else None
    left = UNSET if item.left_offset is None else item.left_offset
    return ExportedConversation(
        item.conversation_id, item.joined_offset, item.read_offset, item.delivered_offset, left, until
    )


async def _tracks(call: Call, place: _Place) -> tuple[dict[str, Any], _Place | None]:
    """The next positions of one order for which the caller was hired: of the one after `key`, or the rest of that one."""
    erasures, user_id, order_id = call.services.erasures, call.caller.user_id, place.key
    if not place.after:
        orders = await erasures.tracked_orders(user_id, place.key, 1)
        if not orders:
            return {"tracks": []}, None
        (order_id,) = orders
    positions = await erasures.track(user_id, order_id, place.after or -1, _POSITIONS)
    track = ExportedTrack(order_id, [track_point(position) for position in positions])
    full = len(positions) == _POSITIONS
    return {"tracks": [track]}, _Place(place.part, order_id, positions[-1].at if full else 0)


async def _blocks(call: Call, place: _Place) -> tuple[dict[str, Any], _Place | None]:
    """The next users whom the caller has blocked."""
    page = await call.services.blocks.list_of(call.caller.user_id, place.key or None, _BLOCKS)
    found = {"blocks": [block_view(block) for block in page.items]}
    return found, None if page.next_cursor is None else _Place(place.part, page.next_cursor)


async def _uploads(call: Call, place: _Place) -> tuple[dict[str, Any], _Place | None]:
    """The next uploads: what they hold is had from where it is."""
    page = await call.services.uploads.list_of(call.caller.user_id, place.key, _UPLOADS)
    found = [
        ExportedUpload(
            item.id,
            item.purpose,
            item.content_type,
            item.size_bytes,
            rfc3339(item.created_at),
            f"/v1/uploads/{item.id}",
        )
        for item in page
    ]
    return {"uploads": found}, _Place(place.part, page[-1].id) if len(page) == _UPLOADS else None


_Reader = Callable[[Call, _Place], Awaitable[tuple[dict[str, Any], _Place | None]]]
_READERS: Final[dict[str, _Reader]] = dict(
    zip(_PARTS, (_messages, _conversations, _orders, _orders, _tracks, _blocks, _uploads), strict=True)
)


@endpoint("DELETE", "/v1/me", tag="people", rule=Rule.OWNER, status=202, conflicts=True)
async def erase_me(call: Call) -> Erasing:
    """Erase the account and what its owner wrote. It cannot be undone, and needs a login of the last ten minutes.

    409 `conflict` while the caller has orders that are not over (`current`): finish or cancel them first. All sessions end
    at once; messages go within minutes. Orders stay as what both parties agreed on, without a name.
    """
    caller, services = call.caller, call.services
    now_ms = call.now_ms()
    session = await services.sessions.get(caller.session_id)
    if session is None or now_ms - session.created_at > call.settings.recent_login_s * 1000:
        raise Refusal(Code.FORBIDDEN, "log in again, then erase the account with that session")
    heads = await services.read_models.order_heads(caller.user_id)
    if heads:
        open_orders = [order_id for order_id, _, _ in heads[:100]]
        raise Refusal(Code.CONFLICT, "there are orders that are not over", current={"orders": open_orders})
    ended = await services.erasures.begin(caller.user_id, now_ms)
    await write_after(call, act_of(call, Deed.ACCOUNT_ERASED, OK, f"user:{caller.user_id}"))
    await announce(call, caller.user_id, ended)
    return Erasing(rfc3339(now_ms))


ENDPOINTS: tuple[Endpoint, ...] = (export_me, erase_me)
