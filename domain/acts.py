"""What is written down of every act that matters to security: who did what to what, from where, and how it ended.

Never a phone number, a name, a code or a token: people are ids, phones are keyed hashes.
"""

from enum import StrEnum
from typing import Final

import msgspec

from domain.errors import Refusal

ALLOWED: Final = "allowed"
"""The outcome of an operator's act that is about to happen: the row stands before it. One that fails gets a second row."""
OK: Final = "ok"

ACTOR_MOST: Final = 64
OBJECT_MOST: Final = 128
DETAILS_MOST_BYTES: Final = 2_000


class Deed(StrEnum):
    """Acts that are not named after an endpoint. An operator's call of the endpoint `x` is the act `ops.x`."""

    CODE_REQUESTED = "code.requested"
    LOGIN = "login"
    REFRESH_REUSED = "refresh.reused"
    LOGOUT = "logout"
    SESSION_ENDED = "session.ended"
    ROLE_GRANTED = "role.granted"
    DOCUMENT_REVIEWED = "document.reviewed"
    KEYS_ROTATED = "keys.rotated"
    ACCOUNT_ERASED = "account.erased"
    AUDIT_SWEPT = "audit.swept"


def ops_act(name: str) -> str:
    """The act of an operator that calls an endpoint, or gives an order a command (`order.<command>`)."""
    return f"ops.{name}"


def outcome_of(error: BaseException) -> str:
    """How an act ended that raised this: the code of the refusal, or `failed`."""
    return str(error.code) if isinstance(error, Refusal) else "failed"


class Act(msgspec.Struct, frozen=True):
    """One act. `actor` is a user's id, `cli:<account>` for a command on the machine, or empty where nobody knows.

    `object` is what it was done to: a session's id, `order:<id>`, `phone:<keyed hash>`. Everything beyond the limits of
    this module is cut off when it is written.
    """

    act: str
    outcome: str
    actor: str = ""
    session: str = ""
    ip: str = ""
    object: str = ""
    details: dict[str, str] = {}


def of_session(act: Act | None, user_id: str, session_id: str) -> Act | None:
    """The act, done to this device session in the name of its user."""
    if act is None:
        return None
    return msgspec.structs.replace(act, actor=user_id, session=session_id, object=f"session:{session_id}")
