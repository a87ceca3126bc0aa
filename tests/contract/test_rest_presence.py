"""`GET /v1/conversations/{id}/presence` on the real runtime and a real SQLite store."""

from typing import Any

import pytest

from domain.ports import StoreUnavailable
from domain.presence import Present, user_channel
from tests.contract.test_rest_journey import Person, http, people, platform, url
from tests.support.rest_platform import RestPlatform

__all__ = ["http", "people", "platform", "url"]


@pytest.fixture
async def room(people: tuple[Person, Person, Person]) -> str:
    """A conversation of the first two."""
    ann, bob, _ = people
    opened: str = (await ann.post("/v1/conversations", {"member_ids": [bob.id]}, 201))["id"]
    return opened


async def connected(platform: RestPlatform, *clients: Present) -> None:
    await platform.presence.enter("gateway")
    assert await platform.presence.say("gateway", {user_channel(client.user): [client] for client in clients})


def of(answer: Any, person: Person) -> Any:
    (found,) = [user for user in answer["users"] if user["user_id"] == person.id]
    return found


async def test_members_see_who_of_them_is_online(people: Any, room: str, platform: RestPlatform) -> None:
    ann, bob, _ = people
    await connected(platform, Present("client-1", bob.id, "phone", 1_767_225_600_000))
    answer = await ann.get(f"/v1/conversations/{room}/presence")
    assert {user["user_id"] for user in answer["users"]} == {ann.id, bob.id}
    assert of(answer, ann) == {"user_id": ann.id, "online": False, "devices": []}
    assert of(answer, bob) == {
        "user_id": bob.id,
        "online": True,
        "devices": [{"device": "phone", "since": "2026-01-01T00:00:00.000Z"}],
    }
    assert await platform.presence.say("gateway", {}, {user_channel(bob.id): 0})
    away = of(await ann.get(f"/v1/conversations/{room}/presence"), bob)
    assert (away["online"], away["devices"], away["last_seen_at"][-1]) == (False, [], "Z")


async def test_to_others_the_conversation_does_not_exist(people: Any, room: str) -> None:
    _, _, eve = people
    assert (await eve.get(f"/v1/conversations/{room}/presence", 404))["code"] == "not_found"


async def test_who_has_blocked_the_caller_looks_as_if_they_never_were(
    people: Any, room: str, platform: RestPlatform
) -> None:
    ann, bob, _ = people
    clients = [Present(f"client-{person.id}", person.id, "phone", 1) for person in (ann, bob)]
    await connected(platform, *clients)
    await bob.ask("PUT", f"/v1/blocks/{ann.id}")
    seen_by_ann = await ann.get(f"/v1/conversations/{room}/presence")
    assert of(seen_by_ann, bob) == {"user_id": bob.id, "online": False, "devices": []}
    assert of(seen_by_ann, ann)["online"]
    assert of(await bob.get(f"/v1/conversations/{room}/presence"), ann)["online"]


async def test_while_the_store_is_away_it_is_unavailable(people: Any, room: str, platform: RestPlatform) -> None:
    ann, _, _ = people
    platform.presence.is_up = False
    with pytest.raises(StoreUnavailable):
        await platform.presence.read([])
    refused = await ann.get(f"/v1/conversations/{room}/presence", 503)
    assert refused["code"] == "unavailable"
