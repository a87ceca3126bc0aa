"""Every error and disconnect code of the WebSocket, and what a client does with it.

The protocol's own codes are those of Centrifuge (`errors.go`, `disconnect.go`): the SDKs act on them. Errors of rpc methods
carry the platform's catalogue: the number is the HTTP status of the catalogue code, the message is the code itself.
"""

from typing import Final, NamedTuple

from domain.errors import RETRYABLE, STATUS, Code, Refused


class ErrorCode(NamedTuple):
    """An error in a reply. `temporary`: the SDK asks again by itself (connect, subscribe, refresh)."""

    code: int
    message: str
    temporary: bool = False


INTERNAL: Final = ErrorCode(100, "internal server error", True)
"""Something failed here; ask again."""
UNAUTHORIZED: Final = ErrorCode(101, "unauthorized")
"""The connection may not do this; log in again."""
UNKNOWN_CHANNEL: Final = ErrorCode(102, "unknown channel")
"""Not used: a channel that does not exist answers like one that may not be seen."""
PERMISSION_DENIED: Final = ErrorCode(103, "permission denied")
"""Not a member, or no such channel; the subscription ends."""
METHOD_NOT_FOUND: Final = ErrorCode(104, "method not found")
"""The client speaks of something this version does not have."""
ALREADY_SUBSCRIBED: Final = ErrorCode(105, "already subscribed")
"""The connection follows the channel already."""
LIMIT_EXCEEDED: Final = ErrorCode(106, "limit exceeded")
"""Too many subscriptions on this connection; drop some. For `presence`: too many clients to name; ask how many."""
BAD_REQUEST: Final = ErrorCode(107, "bad request")
"""The parameters have no meaning; do not repeat."""
NOT_AVAILABLE: Final = ErrorCode(108, "not available")
"""This server does not offer it (tokens for channels; presence where it has no Redis)."""
TOKEN_EXPIRED: Final = ErrorCode(109, "token expired")
"""Get a fresh access token and connect again; the SDKs call `getToken`."""
TOO_MANY_REQUESTS: Final = ErrorCode(111, "too many requests", True)
"""Over the connection's budget; wait and ask again with the same id."""
UNRECOVERABLE_POSITION: Final = ErrorCode(112, "unrecoverable position")
"""The epoch is another one or the offset is beyond the stream; load the state anew."""


class Disconnect(NamedTuple):
    """A close code and its reason."""

    code: int
    reason: str

    @property
    def reconnect(self) -> bool:
        """Whether a client comes back by itself: 3000-3499, 4000-4499 and from 5000 on."""
        return not (3500 <= self.code < 4000 or 4500 <= self.code < 5000)


SHUTDOWN: Final = Disconnect(3001, "shutdown")
"""The gateway stops; reconnect with backoff."""
SERVER_ERROR: Final = Disconnect(3004, "internal server error")
"""Something failed here; reconnect with backoff."""
EXPIRED: Final = Disconnect(3005, "connection expired")
"""The token ran out and was not refreshed; get a fresh one and reconnect."""
SLOW: Final = Disconnect(3008, "slow")
"""The client did not read what it was sent, or took nothing for 10 s although a ping waited; reconnect and recover."""
INSUFFICIENT_STATE: Final = Disconnect(3010, "insufficient state")
"""The gateway could not read what the client misses; reconnect and recover."""
NO_PONG: Final = Disconnect(3012, "no pong")
"""No answer to a ping for 10 s, in which the client took nothing or had nothing left to take; reconnect."""
INVALID_TOKEN: Final = Disconnect(3500, "invalid token")
"""The token is not one of ours; log in again."""
BAD_FRAME: Final = Disconnect(3501, "bad request")
"""Not the protocol: malformed frames or commands out of order. A bug of the client; do not reconnect."""
STALE: Final = Disconnect(3502, "stale")
"""No `connect` command in time."""
CONNECTION_LIMIT: Final = Disconnect(3504, "connection limit")
"""The user has more connections than one gateway holds for one user, and this was the oldest; do not reconnect."""
DRAINING: Final = Disconnect(4001, "draining")
"""The gateway is being replaced; reconnect with jitter, to another one."""
SESSION_REVOKED: Final = Disconnect(4500, "session_revoked")
"""The device was logged out; log in again."""
PROTOCOL_ABUSE: Final = Disconnect(4501, "protocol_abuse")
"""The client ignored its budget; do not reconnect."""


class Unsubscribe(NamedTuple):
    """Why the server ended one subscription. From 2500 on the SDK subscribes again, and is told whether it still may."""

    code: int
    reason: str


MEMBERSHIP_LOST: Final = Unsubscribe(2510, "permission denied")
"""The user is no longer a member."""


def catalogue_error(code: Code) -> ErrorCode:
    """The error of an rpc for a catalogue code."""
    shown = Code.UNAVAILABLE if code is Code.FENCED else code
    return ErrorCode(STATUS[shown], shown.value, shown in RETRYABLE)


def subscribe_error(refused: Refused) -> ErrorCode:
    """The error of a subscription: what may not be seen answers like what does not exist."""
    if refused.code in RETRYABLE:
        return catalogue_error(refused.code)
    return PERMISSION_DENIED
