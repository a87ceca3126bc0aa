"""Who a worker is, and what orders ask of them; whose uploads a message may name; how often one may upload."""

import uuid
from typing import Any

import httpx
import msgspec
import pytest

from domain.aggregate import Facts, UploadFact, UploadNeed
from domain.chat import CHAT
from domain.errors import Code, Refusal
from domain.policy import CategoryPolicy, Policy
from domain.verification import is_verified, missing, standing, tail_of
from tests.support.chat_turns import ANNA, EVE, command, run, user
from tests.support.pictures import picture
from tests.support.rest_app import World as RestWorld
from tests.unit.order_world import BEN, World, make_id

ASKS = Policy(categories={"plumbing": CategoryPolicy(verified=True, licence=True), "painting": CategoryPolicy()})
DAY = 86_400_000


@pytest.mark.parametrize(
    ("identity_until", "licences", "lacks"),
    [
        (0, {}, "identity"),
        (100, {"plumbing": 500}, "identity"),
        (101, {}, "licence"),
        (101, {"plumbing": 100}, "licence"),
        (101, {"painting": 500}, "licence"),
        (101, {"plumbing": 101}, None),
    ],
)
def test_a_document_is_good_until_the_moment_it_expires(
    identity_until: int, licences: dict[str, int], lacks: str | None
) -> None:
    assert missing("plumbing", identity_until, licences, ASKS, 100) == lacks
    assert missing("painting", identity_until, licences, ASKS, 100) is None
    assert is_verified(["plumbing", "painting"], identity_until, licences, ASKS, 100) == (lacks is None)
    assert is_verified(["painting"], identity_until, licences, ASKS, 100) == (identity_until > 100)


def test_of_several_documents_the_longest_counts() -> None:
    approved = [
        ("identity", "", 5),
        ("identity", "", 9),
        ("licence", "gas", 3),
        ("licence", "gas", 2),
        ("licence", "x", 1),
    ]
    assert standing(approved) == (9, {"gas": 3, "x": 1})
    assert standing([]) == (0, {})


@pytest.mark.parametrize("number", ["", "1", "12", "123", "123456", "12345678", "1" * 40])
def test_less_than_half_of_a_number_is_ever_shown(number: str) -> None:
    assert number.endswith(tail_of(number))
    assert len(tail_of(number)) <= min(4, len(number) / 2)


def vouched(world: World, identity: int, licence: int) -> None:
    account = world.accounts[BEN]
    until = {"identity_until": world.now + identity, "licences": {"plumbing": world.now + licence}}
    world.accounts[BEN] = msgspec.structs.replace(account, **until)


def test_without_documents_nobody_quotes_where_the_category_asks_for_them() -> None:
    world = World(ASKS).opened()
    for identity, licence, what in ((0, DAY, "identity"), (DAY, 0, "licence"), (-1, -1, "identity")):
        vouched(world, identity, licence)
        with pytest.raises(Refusal) as refused:
            world.quote("ben")
        assert refused.value.code is Code.FORBIDDEN
        assert refused.value.refused.detail.endswith(what)
    vouched(world, DAY, DAY)
    world.quote("ben")


def test_who_asks_for_nothing_is_quoted_by_anybody() -> None:
    World().opened().quote("ben")


def test_a_quote_is_accepted_only_while_its_workers_documents_are_good() -> None:
    world = World(ASKS).opened()
    vouched(world, DAY, DAY)
    world.quote("ben")
    quote_id = make_id(0x2001)
    vouched(world, DAY, 0)
    refused = world.refused("anna", "accept_quote", world.state.version, quote_id=quote_id, rev=1)
    assert refused.code is Code.CONFLICT
    vouched(world, DAY, DAY)
    world.do("anna", "accept_quote", world.state.version, quote_id=quote_id, rev=1)


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_message_without_attachments_asks_for_nothing_and_one_with_them_for_each_once() -> None:
    room = CHAT.initial(str(uuid.uuid4()))
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    plain = command("send", user(ANNA), text="hello")
    assert CHAT.needs_of(room, plain, CHAT.parse(plain)) == ()
    laden = command("send", user(ANNA), attachments=[one, two, one])
    assert CHAT.needs_of(room, laden, CHAT.parse(laden)) == (UploadNeed(one), UploadNeed(two))


@pytest.mark.parametrize(
    "fact", [None, UploadFact(EVE, "chat"), UploadFact(ANNA, "photo"), UploadFact(ANNA, "document")]
)
def test_a_message_names_its_authors_own_uploads_for_messages(fact: UploadFact | None) -> None:
    room = CHAT.initial(str(uuid.uuid4()))
    run(room, command("open", user(ANNA), member_ids=[ANNA, EVE]))
    own, other = str(uuid.uuid4()), str(uuid.uuid4())
    known: dict[Any, Any] = {UploadNeed(own): UploadFact(ANNA, "chat"), UploadNeed(other): fact}
    with pytest.raises(Refusal) as refused:
        run(room, command("send", user(ANNA), text="look", attachments=[own, other]), Facts(known))
    assert [(error.field, error.code) for error in refused.value.refused.errors] == [("attachments[1]", "unknown")]
    (posted,) = run(room, command("send", user(ANNA), attachments=[own]), Facts(known))
    assert posted.attachments == (own,)


# --- how often -------------------------------------------------------------------------------------------------------


async def test_a_user_uploads_so_often_an_hour_and_others_are_not_counted() -> None:
    world = RestWorld(rate_limits=True, uploads_per_user_hour=3, upload_quota_bytes=1_000)
    (_, anna), (_, bela) = await world.login("+8613800000001"), await world.login("+8613800000002")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(world.app()), base_url="http://rest") as http:

        async def upload(auth: dict[str, str]) -> httpx.Response:
            headers = auth | {"Content-Type": "image/png"}
            return await http.post("/v1/uploads?purpose=chat", content=picture("PNG", (4, 4)), headers=headers)

        assert [(await upload(anna)).status_code for _ in range(4)] == [201, 201, 201, 429]
        assert (await upload(bela)).status_code == 201
