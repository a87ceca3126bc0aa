"""The client without I/O, frame by frame: lost and doubled answers, crashes, reconnects, hints, two connections at once."""

import json
from typing import Any

import msgspec
import pytest

from domain.errors import Code, Refusal
from gateway.client_effects import (
    Answered,
    Dial,
    Discard,
    Done,
    Expelled,
    HangUp,
    Offline,
    Online,
    Rejected,
    Reload,
    RenewToken,
    Save,
    Synced,
    Transmit,
    Unanswered,
)
from gateway.client_settings import Pace
from gateway.client_wire import Position, Write, rpc
from tests.unit.client.world import SETTINGS, USER, World

CHAT, OTHER = "conversation:c", "conversation:d"


def connected(**options: Any) -> World:
    world = World(**options)
    flow(world)
    return world


def flow(world: World) -> None:
    """Everything that is on its way arrives, both ways, until nothing is."""
    world.connect()
    for _ in range(4):
        for link in list(world.conns):
            world.up(link)
            world.down(link)


def written(world: World, write_id: str, stream: str = CHAT) -> None:
    world.write(write_id, stream)
    world.store()


def sent(world: World, kind: str = "rpc") -> list[tuple[int, Any]]:
    """(link, body) of every command of a kind that the client has sent."""
    frames = [(effect.link, json.loads(effect.frame)) for effect in world.effects if isinstance(effect, Transmit)]
    return [(link, frame[kind]) for link, frame in frames if kind in frame]


def writes(world: World) -> list[str]:
    return [body["data"]["id"] for _, body in sent(world)]


def of(world: World, *kinds: type) -> list[Any]:
    return [effect for effect in world.effects if isinstance(effect, kinds)]


def hint(world: World, link: int, **body: Any) -> None:
    world.conns[link].say({"push": {"channel": f"user:{USER}", "pub": {"data": body}}})
    world.down(link)


# --- writes ------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_it_is_stored() -> None:
    world = connected()
    world.write("w1")
    assert writes(world) == []
    world.store()
    assert writes(world) == ["w1"]


@pytest.mark.parametrize(("stored", "then"), [(True, ["w1"]), (False, [])])
def test_a_crash_between_storing_and_sending_leaves_the_write_or_nothing(stored: bool, then: list[str]) -> None:
    world = connected()
    world.write("w1")
    world.crash(stored=stored)
    flow(world)
    assert writes(world) == then


def test_a_write_whose_answer_is_lost_goes_again_with_its_id_and_lands_once() -> None:
    world = connected()
    written(world, "w1")
    world.up(1)
    world.decide(0, "land")
    world.cut(1)
    world.settle(5.0)
    assert writes(world) == ["w1", "w1"]
    assert world.logs[CHAT] == ["w1"]
    assert [(done.write.id, done.attempts) for done in of(world, Done)] == [("w1", 2)]


def test_an_answer_that_comes_twice_counts_once_and_answers_in_any_order_find_their_writes() -> None:
    world = connected()
    written(world, "w1", CHAT)
    written(world, "w2", OTHER)
    world.up(1)
    world.decide(1, "land")
    world.decide(0, "refuse")
    world.down(1, twice=True)
    world.store()
    assert world.ended == [("w2", "done"), ("w1", "rejected")]


def test_the_next_write_of_a_stream_waits_for_the_answer_and_those_of_other_streams_do_not() -> None:
    world = connected()
    for write_id, stream in (("w1", CHAT), ("w2", CHAT), ("w3", OTHER)):
        written(world, write_id, stream)
    assert writes(world) == ["w1", "w3"]
    world.up(1)
    world.decide(0, "unavailable")
    world.down(1)
    assert writes(world) == ["w1", "w3"], "not at once"
    world.pass_time(1.0)
    assert writes(world) == ["w1", "w3", "w1"], "the first again, and not the second in its place"


def test_a_write_that_is_not_answered_goes_again_and_a_late_answer_does_no_harm() -> None:
    """A subscription and a write were late at the same moment; the connection was given up, and the write with it."""
    world = connected()
    world.do(world.client.follow(CHAT, None, world.now_s))
    written(world, "w1")
    world.pass_time(6.5)
    assert of(world, Offline)
    flow(world)
    assert writes(world) == ["w1", "w1"]


def test_a_refusal_is_not_believed_while_an_unanswered_copy_may_still_land() -> None:
    world = connected()
    written(world, "w1")
    written(world, "w2")
    world.up(1)
    world.cut(1)
    world.pass_time(0.3)
    flow(world)
    world.decide(1, "refuse")
    world.down(2)
    assert of(world, Discard) == []
    world.decide(0, "land")
    world.settle(10.0)
    assert world.ended == [("w1", "done"), ("w2", "done")]
    assert world.logs[CHAT] == ["w1", "w2"]


def test_a_refused_write_is_forgotten_before_anybody_hears_of_it_and_before_the_next_one_goes() -> None:
    world = connected()
    written(world, "w1")
    written(world, "w2")
    world.up(1)
    world.decide(0, "refuse")
    world.down(1)
    assert (world.ended, writes(world)) == ([], ["w1"])
    world.store()
    assert (world.ended, writes(world)) == ([("w1", "rejected")], ["w1", "w2"])
    assert list(world.disk) == ["w2"]


def test_a_write_waits_as_long_as_the_platform_asks_for() -> None:
    world = connected()
    written(world, "w1")
    world.up(1)
    world.copies.clear()
    error = {"code": 429, "message": "rate_limited", "temporary": True, "data": {"retry_after_s": 30}}
    world.conns[1].say({"id": 2, "error": error})
    world.down(1)
    world.pass_time(29.0)
    assert writes(world) == ["w1"]
    world.pass_time(1.5)
    assert writes(world) == ["w1", "w1"]


def test_receipts_are_conflated_and_only_the_highest_that_waits_is_told() -> None:
    world = connected()

    def read(offset: int) -> None:
        data = msgspec.json.encode({"offset": offset})
        world.do(world.client.write(Write(f"receipt.read {CHAT}", CHAT, "receipt.read", data, offset)))

    def told() -> list[int]:
        return [body["data"]["offset"] for _, body in sent(world)]

    read(3)
    world.store()
    for offset in (4, 9, 7):
        read(offset)
    world.store()
    assert told() == [3]
    world.conns[1].say({"id": 2, "rpc": {"data": {}}})
    world.down(1)
    assert told() == [3, 9]
    world.conns[1].say({"id": 3, "rpc": {"data": {}}})
    world.down(1)
    assert (told(), world.client.unsettled) == ([3, 9], 0)


def test_a_full_outbox_says_so() -> None:
    world = connected(settings=msgspec.structs.replace(SETTINGS, max_writes=2))
    world.write("w1")
    written(world, "w2")
    with pytest.raises(Refusal) as caught:
        world.write("w3")
    assert caught.value.code is Code.BUSY


def test_an_outbox_of_somebody_else_is_not_sent() -> None:
    world = World()
    world.owner = "somebody else"
    world.disk["w1"] = Write("w1", CHAT, "message.send", b'{"id":"w1"}')
    world.crash(stored=False)
    flow(world)
    assert writes(world) == []
    assert world.finished is not None
    assert "belongs to" in world.finished.reason


# --- questions ---------------------------------------------------------------------------------------------------


def test_a_question_is_asked_again_over_a_new_connection_and_given_up_in_its_time() -> None:
    world = connected()
    world.do(world.client.ask("q", "rpc", rpc("sync", b"{}"), world.now_s + 20.0, world.now_s))
    world.cut(1)
    world.pass_time(0.5)
    flow(world)
    assert [link for link, _ in sent(world)] == [1, 2]
    world.pass_time(20.0)
    assert of(world, Unanswered) == [Unanswered("q")]


def test_a_question_that_is_refused_for_load_is_asked_again_and_another_refusal_is_the_answer() -> None:
    world = connected()
    world.do(world.client.ask("q", "rpc", rpc("sync", b"{}"), world.now_s + 60.0, world.now_s))
    world.conns[1].say({"id": 2, "error": {"code": 503, "message": "busy", "temporary": True}})
    world.down(1)
    world.pass_time(1.0)
    world.conns[1].say({"id": 3, "error": {"code": 104, "message": "method not found"}})
    world.down(1)
    (answer,) = of(world, Answered)
    assert (answer.key, answer.result.code) == ("q", Code.METHOD_NOT_ALLOWED)


# --- coming and going --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1000, 1006, 3000, 3001, 3012, 3499, 4000, 4001, 4499, 5000])
def test_after_these_codes_a_client_comes_back(code: int) -> None:
    world = connected()
    world.cut(1, code)
    world.pass_time(3.0)
    assert (world.finished, len(of(world, Dial))) == (None, 2)


@pytest.mark.parametrize("code", [3500, 3501, 3999, 4500, 4501, 4999])
def test_after_these_codes_a_client_does_not_come_back(code: int) -> None:
    world = connected()
    written(world, "w1")
    world.cut(1, code)
    world.pass_time(60.0)
    assert world.finished is not None
    assert (world.finished.code, len(of(world, Dial)), list(world.disk)) == (code, 1, ["w1"])
    with pytest.raises(Refusal):
        world.write("w2")


def test_who_is_told_that_the_connection_has_expired_gets_a_fresh_token() -> None:
    world = connected()
    world.cut(1, 3005)
    world.pass_time(1.0)
    assert len(of(world, RenewToken)) == 2
    world.connect()
    world.conns[2].up.clear()
    world.conns[2].say({"id": 1, "error": {"code": 109, "message": "token expired"}})
    world.down(2)
    world.token = None
    world.pass_time(1.0)
    assert world.finished is not None
    assert world.finished.reason == "there is no valid access token"


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.99])
def test_reconnects_are_spread_over_the_whole_of_a_growing_time(chance: float) -> None:
    world = World(lambda: chance, msgspec.structs.replace(SETTINGS, pace=Pace(first_s=0.1, longest_s=10.0)))
    for attempt in range(1, 12):
        link = max(world.conns)
        world.cut(link)
        wanted_s = chance * min(10.0, 0.1 * 2**attempt)
        assert world.client.deadline_s - world.now_s == pytest.approx(wanted_s)
        world.pass_time(wanted_s + 0.001)
    flow(world)
    world.pass_time(6.0)
    world.cut(max(world.conns))
    assert world.client.deadline_s - world.now_s == pytest.approx(chance * 0.1), "it held, so all is forgotten"


def test_a_draining_gateway_is_left_with_a_jitter_of_its_own() -> None:
    for chance in (0.0, 0.9):
        world = connected(chance=lambda chance=chance: chance)
        world.cut(1, 4001)
        assert world.client.deadline_s - world.now_s == pytest.approx(chance * 2.0)


def test_pings_are_answered_and_silence_is_taken_for_death() -> None:
    world = connected()
    world.pass_time(30.0)
    world.conns[1].say({})
    world.down(1)
    assert world.effects[-1] == Transmit(1, b"{}")
    world.pass_time(34.0)
    assert of(world, HangUp) == []
    world.pass_time(2.0)
    assert of(world, HangUp, Offline) == [HangUp(1), Offline(0, "silence")]


def test_what_is_not_the_protocol_ends_the_connection_and_not_the_client() -> None:
    world = connected()
    for frame in (b"\xff", b'{"id":', b"[1]", b'{"push":{"channel":5}}'):
        link = max(world.conns)
        world.conns[link].down.append(frame)
        world.down(link)
        world.pass_time(3.0)
        flow(world)
    assert len(of(world, Online)) == 5


# --- streams -----------------------------------------------------------------------------------------------------


def following(world: World, *channels: str, position: Position | None = None) -> World:
    for channel in channels:
        world.do(world.client.follow(channel, position, world.now_s))
    flow(world)
    return world


def test_who_follows_from_a_position_is_shown_everything_behind_it_once() -> None:
    world = connected()
    for n in range(5):
        world.post(CHAT, f"{n}")
    following(world, CHAT, position=Position("e1", 2))
    world.post(CHAT, "5")
    world.down(1, twice=True)
    assert world.shown[CHAT] == [3, 4, 5, 6]


def test_behind_a_hole_nothing_is_shown_until_it_is_filled() -> None:
    world = following(connected(), CHAT)
    world.post(CHAT, "1")
    world.post(CHAT, "2")
    world.conns[1].down.popleft()
    world.down(1)
    assert world.shown.get(CHAT, []) == []
    world.pass_time(1.0)
    flow(world)
    assert world.shown[CHAT] == [1, 2]


def test_a_position_that_leads_nowhere_is_reported_and_the_stream_read_again() -> None:
    world = connected()
    world.post(CHAT, "1")
    following(world, CHAT, position=Position("e0", 7))
    assert of(world, Reload) == [Reload(CHAT)]
    assert world.shown[CHAT] == [1]


def test_a_subscription_that_did_not_recover_is_undone_before_the_stream_is_read_again() -> None:
    world = connected()
    world.do(world.client.follow(CHAT, Position("e1", 3), world.now_s))
    world.conns[1].up.clear()
    world.conns[1].say({"id": 2, "subscribe": {"epoch": "e2", "offset": 9, "recovered": False}})
    world.down(1)
    assert of(world, Reload) == [Reload(CHAT)]
    assert [body["channel"] for _, body in sent(world, "unsubscribe")] == [CHAT]
    flow(world)
    assert world.places[CHAT] == Position("e1", 0)


def test_who_is_put_out_asks_once_more_and_learns_that_it_is_for_good() -> None:
    world = following(connected(), CHAT)
    world.conns[1].say({"push": {"channel": CHAT, "unsubscribe": {"code": 2510, "reason": "permission denied"}}})
    world.down(1)
    world.pass_time(1.0)
    world.conns[1].up.clear()
    world.conns[1].say({"id": 3, "error": {"code": 103, "message": "permission denied"}})
    world.down(1)
    assert of(world, Expelled) == [Expelled(CHAT, 103, "permission denied")]


def test_a_parked_stream_shows_nothing_and_goes_on_where_it_was() -> None:
    world = following(connected(), CHAT)
    world.do(world.client.park(CHAT, world.now_s))
    world.post(CHAT, "1")
    flow(world)
    assert world.shown.get(CHAT, []) == []
    world.do(world.client.unpark(CHAT, world.now_s))
    flow(world)
    assert world.shown[CHAT] == [1]


# --- hints -------------------------------------------------------------------------------------------------------


def test_many_hints_lead_to_one_sync_at_a_random_moment_and_none_for_what_is_followed() -> None:
    world = World(settings=msgspec.structs.replace(SETTINGS, sync=True), chance=lambda: 0.5)
    world.answers_sync = True

    def time(dt_s: float) -> int:
        """How often `sync` has been asked and answered when it has passed."""
        world.pass_time(dt_s)
        flow(world)
        return len(of(world, Synced))

    flow(world)
    assert time(10.0) == 1, "once connected"
    following(world, CHAT)
    hint(world, 1, type="conversation.activity", conversation_id="c", offset=1)
    assert time(10.0) == 1, "what is followed comes by itself"
    for n in range(5):
        hint(world, 1, type="order.activity", order_id=f"{n}")
    hint(world, 1, type="service.restored")
    assert time(0.4) == 1, "not all clients at once"
    assert time(0.2) == 2
    assert time(10.0) == 2


# --- make before break -------------------------------------------------------------------------------------------


def leaving() -> World:
    """Two streams are followed on connection 1, whose gateway says that it will go; connection 2 is open."""
    world = following(connected(), CHAT, OTHER)
    world.post(CHAT, "1")
    world.down(1)
    hint(world, 1, type="service.draining", within_s=4.0)
    assert len(of(world, Dial)) == 1, "with a jitter"
    world.pass_time(2.0)
    world.connect()
    world.up(2)
    world.down(2)
    return world


def test_the_first_connection_is_left_only_when_everything_stands_on_the_second() -> None:
    world = leaving()
    asked = {body["channel"]: body["offset"] for link, body in sent(world, "subscribe") if link == 2}
    assert asked == {CHAT: 1, OTHER: 0}
    world.up(2)
    world.down(2, 1)
    world.post(CHAT, "2")
    world.post(OTHER, "1")
    assert world.hung_up == []
    written(world, "w1")
    world.down(2)
    world.down(1)
    assert world.hung_up == [], "an answer is still to come"
    world.up(1)
    world.decide(0, "land")
    world.down(1)
    assert world.hung_up == [1]
    world.down(2)
    assert (world.shown[CHAT], world.shown[OTHER]) == ([1, 2, 3], [1])
    assert [done.attempts for done in of(world, Done)] == [1]
    assert of(world, Offline) == []
    written(world, "w2")
    assert sent(world)[-1][0] == 2


def test_when_the_first_connection_ends_early_the_second_one_takes_over_with_what_is_not_answered() -> None:
    world = leaving()
    written(world, "w1")
    world.cut(1, 4001, arrived=0)
    flow(world)
    assert sent(world)[-1] == (2, {"method": "message.send", "data": {"id": "w1"}})
    assert of(world, Offline) == []
    assert len(of(world, Dial)) == 2


def test_a_second_connection_that_fails_or_lands_at_a_leaving_gateway_is_tried_again() -> None:
    world = leaving()
    world.cut(2, 0)
    world.pass_time(1.0)
    world.connect()
    world.up(3)
    world.down(3)
    hint(world, 3, type="service.draining", within_s=4.0)
    assert world.hung_up == [3]
    world.pass_time(2.0)
    flow(world)
    assert world.hung_up == [3, 1]
    assert len(of(world, Dial)) == 4


def test_the_process_that_is_told_of_its_effects_is_told_what_it_may_do() -> None:
    """The order of effects is the order in which they are to be performed."""
    world = connected()
    world.write("w1")
    assert isinstance(world.effects[-1], Save)
    world.do(world.client.close(world.now_s))
    assert [type(effect).__name__ for effect in world.effects[-2:]] == ["HangUp", "Finished"]
    assert of(world, Rejected) == []
