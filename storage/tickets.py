"""What a connection may be opened with: an access token as often as wanted, a ticket once."""

from typing import Final

import msgspec

from domain.errors import Code, Refusal
from domain.ports import Clock, Identity, TicketStore
from domain.tickets import is_ticket
from storage.tokens import JwtVerifier

SESSION_S: Final = 900
"""A connection opened with a ticket lives as long as one opened with a fresh access token."""


class ConnectVerifier:
    """`ports.TokenVerifier` of a gateway: takes access tokens, and tickets that were not used before.

    A used ticket counts as expired: that is the answer upon which the SDKs ask the application for another one.
    """

    def __init__(self, verifier: JwtVerifier, tickets: TicketStore, clock: Clock, session_s: int = SESSION_S) -> None:
        self._verifier = verifier
        self._tickets = tickets
        self._clock = clock
        self._session_s = session_s

    async def verify(self, token: str) -> Identity:
        if not is_ticket(token):
            return await self._verifier.verify(token)
        identity, ticket_id = await self._verifier.verify_ticket(token)
        # Last, so that a ticket which is refused for something else is not used up.
        if not await self._tickets.spend(ticket_id):
            raise Refusal(Code.TOKEN_EXPIRED, "the ticket was used or is too old")
        return msgspec.structs.replace(identity, expires_at=self._clock.now_ms() + self._session_s * 1000)

    async def check_session(self, session_id: str) -> None:
        await self._verifier.check_session(session_id)

    def forget(self, session_id: str) -> None:
        self._verifier.forget(session_id)
