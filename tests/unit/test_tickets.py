"""Tickets: one connection each, within half a minute, and nothing else."""

import asyncio
import base64
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from domain.errors import Code, Refusal
from domain.ports import StoreUnavailable
from domain.tickets import TICKET_PREFIX, TICKET_TTL_S, is_ticket
from storage.tickets import ConnectVerifier
from storage.tokens import JwtIssuer, JwtVerifier, SigningKeys, TokenSettings
from tests.support.rest_app import MemoryTickets
from tests.unit.test_tokens import NOW_MS, SESSION, USER, KnownSessions, ManualClock, key, keys

__all__ = ["key", "keys"]


class World:
    def __init__(self, keys: SigningKeys) -> None:
        self.clock = ManualClock()
        self.sessions = KnownSessions(SESSION)
        self.issuer = JwtIssuer(keys)
        self.access = JwtVerifier(keys, self.sessions, self.clock, TokenSettings(session_ttl_s=0))  # type: ignore[arg-type]
        self.tickets = MemoryTickets(self.clock)  # type: ignore[arg-type]
        self.verifier = ConnectVerifier(self.access, self.tickets, self.clock)

    async def ticket(self, ticket_id: str = "t1") -> str:
        await self.tickets.issue(ticket_id, TICKET_TTL_S)
        return self.issuer.ticket(USER, SESSION, ticket_id, self.clock.now_ms(), TICKET_TTL_S)

    async def refused(self, token: str) -> Code:
        with pytest.raises(Refusal) as caught:
            await self.verifier.verify(token)
        return caught.value.code


@pytest.fixture
def world(keys: SigningKeys) -> World:
    return World(keys)


async def test_a_ticket_opens_one_session_that_lives_like_a_fresh_access_token(world: World) -> None:
    identity = await world.verifier.verify(await world.ticket())
    assert (identity.user_id, identity.session_id, identity.expires_at) == (USER, SESSION, NOW_MS + 900_000)


async def test_a_ticket_is_used_once_and_then_counts_as_expired(world: World) -> None:
    ticket = await world.ticket()
    await world.verifier.verify(ticket)
    assert await world.refused(ticket) is Code.TOKEN_EXPIRED


async def test_of_fifty_uses_at_once_one_succeeds(world: World) -> None:
    ticket = await world.ticket()
    outcomes = await asyncio.gather(*(world.verifier.verify(ticket) for _ in range(50)), return_exceptions=True)
    assert sum(not isinstance(outcome, Refusal) for outcome in outcomes) == 1


@pytest.mark.parametrize(("age_s", "accepted"), [(29, True), (31, False), (36, False)])
async def test_a_ticket_lives_half_a_minute(world: World, age_s: int, accepted: bool) -> None:
    ticket = await world.ticket()
    world.clock.advance(age_s)
    if accepted:
        assert (await world.verifier.verify(ticket)).user_id == USER
    else:
        assert await world.refused(ticket) is Code.TOKEN_EXPIRED


async def test_a_ticket_is_no_access_token_with_or_without_its_prefix(world: World) -> None:
    ticket = await world.ticket()
    for token in (ticket, ticket.removeprefix(TICKET_PREFIX)):
        with pytest.raises(Refusal) as caught:
            await world.access.verify(token)
        assert caught.value.code is Code.UNAUTHENTICATED


async def test_an_access_token_is_no_ticket_but_still_a_token(world: World) -> None:
    token = world.issuer.access(USER, SESSION, NOW_MS, 900)
    assert not is_ticket(token)
    assert await world.refused(TICKET_PREFIX + token) is Code.UNAUTHENTICATED
    assert (await world.verifier.verify(token)).expires_at == (NOW_MS // 1000 + 900) * 1000


@pytest.mark.parametrize("wrong", ["typ", "aud"])
async def test_type_and_audience_are_both_looked_at(world: World, key: RSAPrivateKey, wrong: str) -> None:
    ticket = (await world.ticket()).removeprefix(TICKET_PREFIX)
    header = jwt.get_unverified_header(ticket)
    payload = ticket.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    if wrong == "typ":
        header["typ"] = "at+jwt"
    else:
        claims["aud"] = "renoveasy-api"
    forged = jwt.encode(claims, key, "RS256", headers={"kid": header["kid"], "typ": header["typ"]})
    assert await world.refused(TICKET_PREFIX + forged) is Code.UNAUTHENTICATED


async def test_a_ticket_that_was_signed_but_never_issued_opens_nothing(world: World) -> None:
    ticket = world.issuer.ticket(USER, SESSION, "never", NOW_MS, TICKET_TTL_S)
    assert await world.refused(ticket) is Code.TOKEN_EXPIRED


async def test_a_revoked_device_does_not_get_in_and_its_ticket_is_not_asked_about(world: World) -> None:
    ticket = await world.ticket()
    world.sessions.revoke(SESSION)
    assert await world.refused(ticket) is Code.SESSION_REVOKED
    assert "t1" in world.tickets.issued


async def test_while_nobody_knows_what_was_used_nobody_gets_in(world: World) -> None:
    class Away(MemoryTickets):
        async def spend(self, ticket_id: str) -> bool:
            raise StoreUnavailable("Redis is away")

    verifier = ConnectVerifier(world.access, Away(world.clock), world.clock)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable):
        await verifier.verify(await world.ticket())


async def test_whether_a_device_still_may_be_here_does_not_depend_on_its_token(world: World) -> None:
    await world.verifier.check_session(SESSION)
    world.sessions.revoke(SESSION)
    with pytest.raises(Refusal) as caught:
        await world.verifier.check_session(SESSION)
    assert caught.value.code is Code.SESSION_REVOKED
