"""Blocking over REST: whatever fails in between, repeated requests end in agreement between the table and the conversations."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.commands import Accepted, Command
from domain.errors import Code, Refusal
from tests.support.rest_app import World

NOBODY = "01890000-0000-7000-8000-ffffffffffff"


class Rooms:
    """A router to conversations that keep the promises of real ones: an id has one effect, for ever.

    `lose` says what becomes of each command: None lets it through, "before" loses it on its way, "after" loses its answer.
    """

    def __init__(self, *rooms: str) -> None:
        self.blocks: dict[str, set[tuple[str, str]]] = {room: set() for room in rooms}
        self.done: set[tuple[str, str]] = set()
        self.asked: list[Command] = []
        self.lose: Callable[[], str | None] = lambda: None
        self.refuse: dict[str, Refusal] = {}
        self.meanwhile: Callable[[Command], Any] | None = None

    async def ask(self, command: Command, timeout_s: float = 5.0) -> Accepted:
        self.asked.append(command)
        if self.meanwhile is not None:
            await self.meanwhile(command)
        await asyncio.sleep(0)
        fate = self.lose()
        if fate == "before":
            raise Refusal(Code.UNAVAILABLE)
        if command.stream_id in self.refuse:
            raise self.refuse[command.stream_id]
        self.take(command)
        if fate == "after":
            raise Refusal(Code.UNAVAILABLE)
        return Accepted(1, 1)

    def take(self, command: Command) -> None:
        key = (command.stream_id, command.command_id)
        pair = (command.actor.id, msgspec.json.decode(command.payload)["user_id"])
        room = self.blocks[command.stream_id]
        if key in self.done or (command.name == "block") == (pair in room):
            return
        self.done.add(key)
        if command.name == "block":
            room.add(pair)
        else:
            room.discard(pair)


class Scene:
    """Ann, who blocks, and Bob; three conversations of theirs, and one that Cara is in as well."""

    async def enter(self) -> "Scene":
        self.world = World()
        (self.ann, self.auth), (self.bob, _), (self.cara, _) = [
            await self.world.login(f"+861380000000{n}") for n in range(1, 4)
        ]
        names = [self.world.new_id() for _ in range(4)]
        self.pairs, self.group = names[:3], names[3]
        both = {self.ann.id, self.bob.id}
        self.world.blocks.conversations = {name: set(both) for name in self.pairs} | {self.group: both | {self.cara.id}}
        self.rooms = self.world.router = Rooms(*names)
        transport = httpx.ASGITransport(self.world.app())
        self.http = httpx.AsyncClient(transport=transport, base_url="http://rest", headers=self.auth)
        return self

    async def ask(self, method: str, user_id: str | None = None) -> httpx.Response:
        return await self.http.request(method, f"/v1/blocks/{user_id or self.bob.id}")

    def agreed(self) -> bool:
        """Whether every conversation of the two says what the table says."""
        row = self.world.blocks.rows.get((self.ann.id, self.bob.id))
        wanted = {(self.ann.id, self.bob.id)} if row is not None and row.active else set()
        return all(self.rooms.blocks[room] == wanted for room in self.pairs)


async def test_a_block_is_told_to_every_conversation_of_just_the_two_and_so_is_its_end() -> None:
    scene = await Scene().enter()
    answer = await scene.ask("PUT")
    assert answer.status_code == 200
    block = answer.json()
    assert block["user_id"] == scene.bob.id
    assert {command.stream_id for command in scene.rooms.asked} == set(scene.pairs)
    assert {(command.name, command.actor.id) for command in scene.rooms.asked} == {("block", scene.ann.id)}
    assert scene.agreed()
    assert (await scene.http.get("/v1/blocks")).json() == {"items": [block], "next_cursor": None}
    assert (await scene.ask("PUT")).json() == block
    assert (await scene.ask("DELETE")).status_code == 204
    assert scene.agreed()
    assert scene.rooms.blocks[scene.pairs[0]] == set()
    assert (await scene.http.get("/v1/blocks")).json() == {"items": [], "next_cursor": None}


async def test_nobody_blocks_themselves_or_somebody_who_does_not_exist() -> None:
    scene = await Scene().enter()
    own = await scene.ask("PUT", scene.ann.id)
    assert (own.status_code, own.json()["code"], own.json()["errors"][0]["field"]) == (422, "invalid", "user_id")
    assert (await scene.ask("PUT", NOBODY)).status_code == 404
    assert (await scene.ask("DELETE", NOBODY)).status_code == 204
    assert scene.world.blocks.rows == {}
    assert scene.rooms.asked == []


async def test_a_block_that_did_not_reach_everybody_is_unavailable_and_stands_and_is_completed_by_repeating_it() -> (
    None
):
    scene = await Scene().enter()
    fates = iter(["after", None, "before"])
    scene.rooms.lose = lambda: next(fates, None)
    first = await scene.ask("PUT")
    assert (first.status_code, first.json()["code"]) == (503, "unavailable")
    assert len((await scene.http.get("/v1/blocks")).json()["items"]) == 1
    assert not scene.agreed()
    ids = [command.command_id for command in scene.rooms.asked]
    assert (await scene.ask("PUT")).status_code == 200
    assert scene.agreed()
    assert [command.command_id for command in scene.rooms.asked[3:]] == ids


async def test_an_end_that_did_not_reach_everybody_is_completed_by_repeating_it() -> None:
    scene = await Scene().enter()
    await scene.ask("PUT")
    scene.rooms.lose = lambda: "before"
    assert (await scene.ask("DELETE")).status_code == 503
    scene.rooms.lose = lambda: None
    assert not scene.agreed()
    assert (await scene.ask("DELETE")).status_code == 204
    assert scene.agreed()


async def test_a_conversation_that_was_left_meanwhile_needs_not_be_told() -> None:
    scene = await Scene().enter()
    scene.rooms.refuse[scene.pairs[1]] = Refusal(Code.NOT_FOUND)
    assert (await scene.ask("PUT")).status_code == 200


async def test_a_block_that_is_ended_is_ended_where_somebody_has_joined_as_well() -> None:
    scene = await Scene().enter()
    await scene.ask("PUT")
    scene.world.blocks.conversations[scene.pairs[0]].add(scene.cara.id)
    assert (await scene.ask("DELETE")).status_code == 204
    assert scene.agreed()


async def test_a_command_that_is_overtaken_by_its_contrary_does_not_have_the_last_word() -> None:
    """Ann blocks on one device; the command is slow, and meanwhile she ends the block on another one, which is done first."""
    scene = await Scene().enter()
    overtaken = False

    async def overtake(command: Command) -> None:
        nonlocal overtaken
        if command.name == "block" and not overtaken:
            overtaken = True
            assert (await scene.ask("DELETE")).status_code == 204

    scene.rooms.meanwhile = overtake
    assert (await scene.ask("PUT")).status_code == 200
    assert overtaken
    assert (await scene.http.get("/v1/blocks")).json()["items"] == []
    assert scene.agreed()


steps = st.lists(
    st.tuples(st.sampled_from(["PUT", "DELETE"]), st.lists(st.sampled_from([None, "before", "after"]), max_size=4)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=120, deadline=None)
@given(steps=steps, together=st.booleans(), pause_ms=st.sampled_from([0, 1]))
def test_after_any_requests_and_failures_repeating_the_last_one_brings_agreement(
    steps: list[Any], together: bool, pause_ms: int
) -> None:
    async def play() -> None:
        scene = await Scene().enter()
        fates = [fate for _, some in steps for fate in some]
        scene.rooms.lose = lambda: fates.pop(0) if fates else None
        if together:
            await asyncio.gather(*(scene.ask(method) for method, _ in steps))
        else:
            for method, _ in steps:
                scene.world.clock.at_ms += pause_ms
                await scene.ask(method)
        fates.clear()
        last = steps[-1][0]
        assert (await scene.ask(last)).is_success
        row = scene.world.blocks.rows.get((scene.ann.id, scene.bob.id))
        assert (row is not None and row.active) == (last == "PUT")
        assert scene.agreed()

    asyncio.run(play())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["PUT", "DELETE"]), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_whatever_order_requests_at_once_are_served_in_the_table_and_the_conversations_agree(
    methods: list[str], chance: Any
) -> None:
    async def play() -> None:
        scene = await Scene().enter()

        async def dawdle(command: Command) -> None:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)

        scene.rooms.meanwhile = dawdle
        answers = await asyncio.gather(*(scene.ask(method) for method in methods))
        if all(answer.is_success for answer in answers):
            assert scene.agreed()

    asyncio.run(play())


@pytest.mark.parametrize("code", [Code.FORBIDDEN, Code.INTERNAL])
async def test_a_refusal_that_repeating_would_not_change_is_told_as_it_is(code: Code) -> None:
    scene = await Scene().enter()
    scene.rooms.refuse[scene.pairs[2]] = Refusal(code)
    assert (await scene.ask("PUT")).json()["code"] == code
