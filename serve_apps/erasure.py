"""Carries erasures out: every message that the person wrote is deleted as they could have deleted it themselves.

It runs beside the requests in every REST replica. Whatever ends a replica in the middle, another one goes on from there.
"""

import asyncio
from typing import Final

import msgspec
import structlog

from domain.commands import SYSTEM, Command
from domain.erasure import Erasure
from domain.errors import Code, Refusal
from domain.ports import BrokerUnavailable, NoResponders, OutcomeUnknown, RequestTimeout, StoreUnavailable
from serve_apps.services import Services

_log = structlog.get_logger(__name__)
_PAGE: Final = 100
_AT_ONCE: Final = 8
_ASK_S: Final = 10.0
POLL_S: Final = 10.0
_LATER: Final = (
    StoreUnavailable,
    BrokerUnavailable,
    NoResponders,
    OutcomeUnknown,
    RequestTimeout,
    Refusal,
    TimeoutError,
)


async def carry_out(services: Services, erasure: Erasure) -> None:
    """One pass, from where the erasure stands. Raises what the ports raise: then it stands where it got to."""
    await services.erasures.forget(erasure.user_id)
    await services.erasures.forget_tracks(erasure.user_id)
    await services.uploads.forget(erasure.user_id)
    while conversations := await services.erasures.conversations(erasure.user_id, erasure.cursor, _PAGE):
        for conversation_id in conversations:
            await _empty(services, erasure, conversation_id)
            erasure = msgspec.structs.replace(erasure, cursor=conversation_id)
            await services.erasures.advance(erasure, services.clock.now_ms())
    await services.erasures.end_pass(erasure)


async def _empty(services: Services, erasure: Erasure, conversation_id: str) -> None:
    after = 0
    while page := await services.erasures.messages(erasure.user_id, conversation_id, after, _PAGE):
        for at in range(0, len(page), _AT_ONCE):
            some = page[at : at + _AT_ONCE]
            await asyncio.gather(*(_delete(services, conversation_id, item.message_id) for item in some))
        await services.erasures.advance(erasure, services.clock.now_ms())
        after = page[-1].offset


async def _delete(services: Services, conversation_id: str, message_id: str) -> None:
    payload = msgspec.json.encode({"message_id": message_id})
    command = Command("conversation", conversation_id, "delete", SYSTEM, services.new_id(), payload)
    await services.router.ask(command, _ASK_S)


async def run_once(services: Services) -> bool:
    """Work on one erasure that is due. False: none was, or it cannot go on now; it is due again when its lease ends."""
    try:
        erasure = await services.erasures.claim(services.clock.now_ms())
        if erasure is None:
            return False
        await carry_out(services, erasure)
    except _LATER as error:
        level = _log.error if isinstance(error, Refusal) and error.code is not Code.UNAVAILABLE else _log.warning
        level("an erasure has to wait", why=str(error)[:200])
        return False
    return True


async def run(services: Services, poll_s: float = POLL_S) -> None:
    """For ever: one erasure after the other."""
    while True:
        try:
            more = await run_once(services)
        except Exception as error:  # a bug that one erasure meets must not end all others
            _log.error("an erasure failed", kind=type(error).__name__)
            more = False
        if not more:
            await asyncio.sleep(poll_s)
