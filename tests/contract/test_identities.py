"""`domain.identities.Identities` on SQLite and on MariaDB, `domain.identities.SignInStore` on a real server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
from redis.asyncio import Redis

from domain.errors import Code, Refusal
from domain.identities import LinkedIdentity, PendingLink, SignIn, Vouched
from domain.ports import StoreUnavailable
from storage.cache import RedisServer
from storage.engine import Database
from storage.identities import SqlIdentities
from storage.sign_ins import RedisSignIns
from tests.support.keys import PHONE_NAMES
from tests.support.servers import Valkey

_ids = (f"01890000-0000-7000-8000-{number:012x}" for number in count(0xABC000))
PHONE, OTHER_PHONE = "+8613800000001", "+8613800000002"
SIGN_IN = SignIn("google", "nonce", "verifier", "com.example.app:/signed-in", None)


@pytest.fixture
async def identities(sql_place: str) -> AsyncIterator[SqlIdentities]:
    database = Database(sql_place)
    yield SqlIdentities(database)
    await database.close()


def subject(provider: str = "google") -> PendingLink:
    """Somebody whom nobody has heard of."""
    return PendingLink(provider, Vouched("https://accounts.example.com", next(_ids)).digest)


# --- links ---


async def test_a_subject_is_found_by_what_it_is_linked_to_and_not_before(identities: SqlIdentities) -> None:
    link, user_id = subject(), next(_ids)
    assert await identities.find(link.digest) is None
    await identities.link(link, user_id, 7)
    assert await identities.find(link.digest) == user_id
    assert await identities.list_of(user_id) == [LinkedIdentity("google", 7)]


async def test_linking_again_changes_nothing(identities: SqlIdentities) -> None:
    link, user_id = subject(), next(_ids)
    await identities.link(link, user_id, 7)
    await identities.link(link, user_id, 8)
    assert await identities.list_of(user_id) == [LinkedIdentity("google", 7)]


async def test_a_subject_is_one_accounts_and_an_account_has_one_subject_of_a_provider(
    identities: SqlIdentities,
) -> None:
    link, user_id, other_id = subject(), next(_ids), next(_ids)
    await identities.link(link, user_id, 7)
    for taken, whose in ((link, other_id), (subject(), user_id)):
        with pytest.raises(Refusal) as caught:
            await identities.link(taken, whose, 8)
        assert caught.value.code is Code.CONFLICT
    await identities.link(subject("apple"), user_id, 9)
    assert await identities.list_of(user_id) == [LinkedIdentity("google", 7), LinkedIdentity("apple", 9)]
    assert await identities.list_of(other_id) == []


async def test_of_ten_accounts_that_want_a_subject_at_once_one_has_it(identities: SqlIdentities) -> None:
    link, users = subject(), [next(_ids) for _ in range(10)]
    said = await asyncio.gather(*(identities.link(link, user, 7) for user in users), return_exceptions=True)
    assert sum(answer is None for answer in said) == 1
    assert all(answer is None or (isinstance(answer, Refusal) and answer.code is Code.CONFLICT) for answer in said)
    assert await identities.find(link.digest) == users[said.index(None)]


async def test_only_the_account_itself_is_unlinked_and_its_subject_may_go_elsewhere(identities: SqlIdentities) -> None:
    link, user_id, other_id = subject(), next(_ids), next(_ids)
    await identities.link(link, user_id, 7)
    assert not await identities.unlink(other_id, "google")
    assert not await identities.unlink(user_id, "apple")
    assert await identities.unlink(user_id, "google")
    assert not await identities.unlink(user_id, "google")
    await identities.link(link, other_id, 8)
    assert await identities.find(link.digest) == other_id


def test_the_same_subject_of_two_issuers_is_two() -> None:
    digests = {Vouched(issuer, name).digest for issuer in ("https://a", "https://b") for name in ("1", "2")}
    assert len(digests) == 4


# --- sign-ins under way ---


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
async def sign_ins(valkey: Valkey) -> AsyncIterator[RedisSignIns]:
    if not valkey.running:
        valkey.start()
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushall()
    server = RedisServer(valkey.url, "test")
    yield RedisSignIns(server, PHONE_NAMES)
    await server.close()


async def test_a_sign_in_is_taken_once_however_many_try(sign_ins: RedisSignIns) -> None:
    await sign_ins.begin("state", SIGN_IN, 60)
    taken = await asyncio.gather(*(sign_ins.take("state") for _ in range(50)))
    assert [item for item in taken if item is not None] == [SIGN_IN]
    assert await sign_ins.take("state") is None


async def test_a_sign_in_that_was_never_begun_or_is_too_old_is_not_taken(sign_ins: RedisSignIns) -> None:
    assert await sign_ins.take("state") is None
    await sign_ins.begin("state", SIGN_IN, 1)
    await sign_ins.offer("token", PendingLink("google", b"d" * 32), 1)
    await asyncio.sleep(1.1)
    assert await sign_ins.take("state") is None
    assert not await sign_ins.claim("token", PHONE)


async def test_a_link_is_redeemed_once_by_the_phone_that_claimed_it(sign_ins: RedisSignIns) -> None:
    link = PendingLink("google", bytes(range(32)))
    assert not await sign_ins.claim("token", PHONE)
    await sign_ins.offer("token", link, 60)
    assert await sign_ins.redeem("token", PHONE) is None, "nobody has claimed it yet"
    assert await sign_ins.claim("token", PHONE)
    assert await sign_ins.claim("token", PHONE)
    assert not await sign_ins.claim("token", OTHER_PHONE)
    assert await sign_ins.redeem("token", OTHER_PHONE) is None
    redeemed = await asyncio.gather(*(sign_ins.redeem("token", PHONE) for _ in range(50)))
    assert [item for item in redeemed if item is not None] == [link]
    assert not await sign_ins.claim("token", PHONE)


async def test_of_two_phones_that_claim_a_link_at_once_one_has_it(sign_ins: RedisSignIns) -> None:
    for number in range(20):
        await sign_ins.offer(f"token-{number}", PendingLink("google", b"d" * 32), 60)
        both = await asyncio.gather(*(sign_ins.claim(f"token-{number}", phone) for phone in (PHONE, OTHER_PHONE)))
        assert sorted(both) == [False, True]


async def test_neither_states_nor_tokens_nor_phones_can_be_read_from_the_server(
    sign_ins: RedisSignIns, valkey: Valkey
) -> None:
    await sign_ins.begin("secret-state", SIGN_IN, 60)
    await sign_ins.offer("secret-token", PendingLink("google", b"d" * 32), 60)
    await sign_ins.claim("secret-token", PHONE)
    async with Redis.from_url(valkey.url) as redis:
        keys = [key async for key in redis.scan_iter()]
        assert len(keys) == 2
        everything = repr(keys) + repr([await redis.dump(key) for key in keys])
        ttls = [await redis.ttl(key) for key in keys]
    assert "secret" not in everything
    assert PHONE not in everything
    assert all(0 < ttl <= 60 for ttl in ttls)


async def test_without_its_server_no_sign_in_goes_on(valkey: Valkey) -> None:
    server = RedisServer(valkey.url)
    sign_ins = RedisSignIns(server, PHONE_NAMES)
    valkey.kill()
    with pytest.raises(StoreUnavailable):
        await sign_ins.take("state")
    with pytest.raises(StoreUnavailable):
        await sign_ins.claim("token", PHONE)
    await server.close()
