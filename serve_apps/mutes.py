"""Conversations that the caller does not want to be notified of. Nobody else learns of it."""

from collections.abc import Sequence
from typing import Any, Final

from domain.errors import invalid
from domain.ports import ConversationRow
from domain.times import parse_rfc3339, rfc3339
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint
from serve_apps.schemas.conversations import MuteRequest, MuteView
from serve_apps.streams import attach

FOR_EVER: Final = 0


@endpoint(
    "PUT",
    "/v1/conversations/{conversation_id}/mute",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
)
async def mute_conversation(call: Call, body: MuteRequest, conversation_id: str) -> MuteView:
    """Push no notifications of the conversation to the caller, until a time or for ever. It is counted as unread as ever."""
    await attach(call, "conversation", conversation_id)
    until_ms = FOR_EVER if body.until is None else _future(body.until, call.now_ms())
    await call.services.mutes.mute(conversation_id, call.caller.user_id, until_ms)
    return MuteView(**_shown(until_ms))


@endpoint(
    "DELETE",
    "/v1/conversations/{conversation_id}/mute",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
    status=204,
)
async def unmute_conversation(call: Call, conversation_id: str) -> None:
    """Notify the caller of the conversation again."""
    await attach(call, "conversation", conversation_id)
    await call.services.mutes.unmute(conversation_id, call.caller.user_id)


async def mutes_of(call: Call, rows: Sequence[ConversationRow]) -> dict[str, dict[str, Any]]:
    """By conversation id, what a list says about the caller's mutes: `muted`, and `muted_until` where that ends."""
    muted = await call.services.mutes.of(call.caller.user_id, [row.id for row in rows], call.now_ms())
    return {row.id: _shown(muted[row.id]) if row.id in muted else {"muted": False} for row in rows}


def _shown(until_ms: int) -> dict[str, Any]:
    return {"muted": True} if until_ms == FOR_EVER else {"muted": True, "muted_until": rfc3339(until_ms)}


def _future(until: str, now_ms: int) -> int:
    try:
        until_ms = parse_rfc3339(until)
    except (ValueError, OverflowError):
        raise invalid("until", "invalid", "an instant such as 2026-01-31T09:30:00.000Z is wanted") from None
    if until_ms <= now_ms:
        raise invalid("until", "past", "a conversation is muted until a time that is yet to come")
    return until_ms


ENDPOINTS: tuple[Endpoint, ...] = (mute_conversation, unmute_conversation)
"""The routes; `mutes_of` is for the list of conversations."""
