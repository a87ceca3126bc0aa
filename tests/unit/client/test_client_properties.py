"""Whatever is cut wherever: every write ends once, in its order, and every event is shown once, in its order."""

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.client.world import World

STREAMS = ("conversation:c", "order:o")
OUTCOMES = ("land", "land", "land silently", "land, unavailable", "refuse", "unavailable")
STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(STREAMS)),
    st.tuples(st.just("follow"), st.sampled_from(STREAMS)),
    st.tuples(st.just("post"), st.sampled_from(STREAMS)),
    st.tuples(st.just("store")),
    *[st.tuples(st.just("flow"))] * 4,
    *[st.tuples(st.just("write"), st.sampled_from(STREAMS))] * 2,
    *[st.tuples(st.just("decide"), st.integers(0, 9), st.sampled_from(OUTCOMES))] * 4,
    st.tuples(st.just("connect")),
    st.tuples(st.just("up"), st.integers(0, 3), st.integers(1, 4)),
    st.tuples(st.just("down"), st.integers(0, 3), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("decide"), st.integers(0, 9), st.sampled_from(OUTCOMES)),
    st.tuples(st.just("cut"), st.integers(0, 3), st.sampled_from((0, 1006, 3001, 3005, 4001)), st.integers(0, 4)),
    st.tuples(st.just("silence"), st.integers(0, 3), st.integers(0, 4)),
    st.tuples(st.just("drain"), st.integers(0, 3)),
    st.tuples(st.just("crash"), st.booleans()),
    st.tuples(st.just("time"), st.sampled_from((0.0, 0.05, 0.3, 1.0, 3.0, 7.0))),
)


def play(world: World, step: tuple[Any, ...], number: int) -> None:
    links = sorted(world.conns) or [0]
    match step:
        case ("write", stream):
            world.write(f"w{number}", stream)
        case ("follow", stream):
            world.do(world.client.follow(stream, None, world.now_s))
        case ("post", stream):
            world.post(stream, f"theirs {number}")
        case ("flow",):
            world.connect()
            for link in list(world.conns):
                world.up(link)
                world.down(link)
            world.store()
        case ("store",):
            world.store()
        case ("connect",):
            world.connect()
        case ("up", n, count):
            world.up(links[n % len(links)], count)
        case ("down", n, count, twice):
            world.down(links[n % len(links)], count, twice=twice)
        case ("decide", n, outcome):
            world.decide(n, outcome)
        case ("cut", n, code, arrived):
            world.cut(links[n % len(links)], code, arrived)
        case ("silence", n, arrived):
            world.cut(links[n % len(links)], arrived=arrived, noticed=False)
        case ("drain", n):
            conn = world.conns.get(links[n % len(links)])
            if conn is not None:
                hint = {"type": "service.draining", "within_s": 2.0}
                conn.say({"push": {"channel": "user:u", "pub": {"data": hint}}})
        case ("crash", stored):
            world.crash(stored=stored)
        case ("time", dt_s):
            world.pass_time(dt_s)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=30, max_size=80), seed=st.integers(0, 2**16))
def test_every_write_ends_once_in_its_order_and_every_event_is_shown_once(steps: list[Any], seed: int) -> None:
    world = World(random.Random(seed).random)
    world.connect()
    kept: set[str] = set()
    for number, step in enumerate(steps):
        play(world, step, number)
        kept |= world.disk.keys()
    world.settle()
    assert world.finished is None
    assert world.disk == {}
    outcome: dict[str, set[str]] = {}
    for write_id, end in world.ended:
        outcome.setdefault(write_id, set()).add(end)
    written = {write.id: write.stream for write in world._all_writes()}
    for write_id in kept:
        assert outcome[write_id] in ({"done"}, {"rejected"}), (write_id, outcome[write_id])
    for stream in STREAMS:
        mine = [event for event in world.logs.get(stream, []) if event.startswith("w")]
        assert mine == [name for name, where in written.items() if where == stream and "done" in outcome.get(name, ())]
    for stream, offsets in world.shown.items():
        end = len(world.logs[stream])
        assert offsets == list(range(end - len(offsets) + 1, end + 1))
        assert world.places[stream].offset == end
