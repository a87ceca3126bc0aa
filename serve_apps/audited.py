"""What endpoints write down in the audit log. An operator's act is written before it happens, and does not happen without.

What people do to their own sessions is written with it where it is a transaction, else right after; where that fails, it is
said loudly in the logs, and they go on.
"""

import hmac
from hashlib import sha256
from typing import TYPE_CHECKING

import structlog

from domain.acts import ALLOWED, Act, Deed, ops_act, outcome_of
from domain.errors import Refusal
from domain.ports import StoreUnavailable

if TYPE_CHECKING:  # endpoint.py writes down operators' calls
    from serve_apps.endpoint import Call

_log = structlog.get_logger(__name__)


def act_of(call: "Call", act: str, outcome: str, object: str = "", **details: str) -> Act:
    """The caller's act; without an actor where nobody has logged in."""
    caller = call.identity
    user_id, session_id = ("", "") if caller is None else (caller.user_id, caller.session_id)
    return Act(act, outcome, user_id, session_id, call.ip, object, details)


def phone_object(pepper: bytes, phone: str) -> str:
    """A name for a phone number that does not show it; the same for the same number."""
    return "phone:" + hmac.digest(pepper, f"audit\n{phone}".encode(), sha256).hex()[:32]


async def write_after(call: "Call", act: Act) -> None:
    """Write down what has happened already."""
    try:
        await call.services.audit.write(act)
    except StoreUnavailable as error:
        call.services.metrics.count("audit_lost")
        _log.error("an act is missing in the audit log", act=act.act, outcome=act.outcome, why=str(error))


async def failed(call: "Call", deed: Deed, object: str, refusal: Refusal, **details: str) -> None:
    """Write down that somebody tried and was refused."""
    await write_after(call, act_of(call, deed, str(refusal.code), object, **details))


class OpsAct:
    """An operator's act: `async with` writes it down first, and how it failed, if it does.

    Raises:
        StoreUnavailable: it cannot be written; nothing has happened.
    """

    def __init__(self, call: "Call", name: str, object: str) -> None:
        self._call = call
        self._act = ops_act(name)
        self._object = object

    async def __aenter__(self) -> None:
        await self._call.services.audit.write(act_of(self._call, self._act, ALLOWED, self._object))

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            await write_after(self._call, act_of(self._call, self._act, outcome_of(error), self._object))
