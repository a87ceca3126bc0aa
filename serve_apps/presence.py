"""Which members of a conversation are online."""

import msgspec

from domain.presence import attendance, presence_list, user_channel
from domain.wire import PresenceList
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint


class _Members(msgspec.Struct):
    members: list[str]


_decode = msgspec.json.Decoder(_Members).decode


@endpoint(
    "GET",
    "/v1/conversations/{conversation_id}/presence",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
)
async def conversation_presence(call: Call, conversation_id: str) -> PresenceList:
    """Which members are online, on which devices, or when they were last seen; as `presence.get` on the WebSocket.

    A member who has blocked the caller looks as if they never were online.
    """
    members = _decode((await call.view("conversation", conversation_id)).body).members
    caller_id = call.caller.user_id
    known = {caller_id, *await call.services.read_models.contacts(caller_id, members)}
    shown = [member for member in members if member in known]
    heard = await call.services.presence.read([user_channel(member) for member in shown])
    found = {member: attendance(each) for member, each in zip(shown, heard, strict=True)}
    return presence_list(members, found)


ENDPOINTS: tuple[Endpoint, ...] = (conversation_presence,)
