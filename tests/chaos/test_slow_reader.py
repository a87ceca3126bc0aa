"""One reads at 1 KB/s beside many who do not: it costs them nothing, the gateway bounded memory, and itself nothing but time."""

import asyncio
import gc
import statistics
from contextlib import suppress
from time import perf_counter

import psutil
import pytest
import uuid_utils

from domain.commands import SYSTEM, Actor, Command, Signal, canonical_json
from tests.chaos.conftest import Chaos, Houses
from tests.support.crowd import Crowd, Place, Walkie, log_in
from tests.support.oracle import judge, quantile, read_log
from tests.support.parts import Part
from tests.support.slow_reader import SlowReader

SLOW_BYTES_PER_S = 1_024
TEXT = "x" * 8_000
"""What fills a queue: the longest text that a message may have."""
TYPINGS = 200
WINDOW_S, SETTLE_S = 20.0, 3.0
"""At 30 messages a second one in a hundred are six: fewer, and one hiccup of the machine is the whole figure."""
ROUNDS = 4


class Sufferer:
    """The slow reader, the conversations that it shares with everybody, and one in which somebody sends it a lot.

    The witness is like it and reads at once.
    """

    def __init__(self, crowd: Crowd, reader: SlowReader, witness: SlowReader, voice: Walkie, stuffed: str) -> None:
        self.crowd = crowd
        self.reader = reader
        self.witness = witness
        self.stuffed = stuffed
        self._voice = voice

    @classmethod
    async def among(cls, crowd: Crowd) -> "Sufferer":
        """A member of every conversation that there is, and of one more."""
        user, other, friend = (str(uuid_utils.uuid7()) for _ in range(3))
        for stream, _ in crowd.rooms:
            for each in [user, other] if stream == crowd.rooms[0][0] else [user]:
                payload = canonical_json({"user_id": each})
                made = str(uuid_utils.uuid7())
                await crowd.router.ask(Command("conversation", stream[13:], "member.add", SYSTEM, made, payload), 10.0)
                crowd.evidence.opened[stream] += (each,)
        stuffed = f"conversation:{uuid_utils.uuid7()}"
        crowd.evidence.opened[stuffed] = (friend, user)
        await crowd._open(stuffed)
        tokens = await log_in(crowd.ground, [user, other])
        reader, witness = SlowReader(crowd, "slow", user, tokens[0]), SlowReader(crowd, "witness", other, tokens[1])
        witness.places = {crowd.rooms[0][0]: Place()}
        reader.places = {stream: Place() for stream in [stuffed, *(stream for stream, _ in crowd.rooms)]}
        return cls(crowd, reader, witness, Walkie(crowd, "friend", friend, crowd.router), stuffed)

    async def stuff(self, messages: int) -> None:
        """Send it so many long messages; returns when they are acknowledged."""
        for _ in range(messages):
            message = self.crowd.message(self.stuffed, self._voice)
            message.text = TEXT
            self._voice.say(message)
        while not self._voice.settled:
            await asyncio.sleep(0.02)

    def behind(self) -> bool:
        """Whether it has not been shown yet what was acknowledged."""
        heads = dict.fromkeys(self.reader.places, 0)
        for message in self.crowd.evidence.sent.values():
            heads[message.stream] = max(heads[message.stream], message.offset)
        return any(place.offset < heads[stream] for stream, place in self.reader.places.items())

    async def catches_up(self, limit_s: float) -> None:
        """It reads as fast as it can from now on; returns when it has everything. Raises TimeoutError."""
        self.reader.bytes_per_s = None
        async with asyncio.timeout(limit_s):
            while self.behind():
                await asyncio.sleep(0.05)

    async def type(self, times: int) -> None:
        """Somebody begins and stops to type, so many times, and is typing in the end; returns when the gateway knows.

        Who is typing may be lost on its way, so the end is said again until it is heard, as people's apps do.
        """
        stream, writers = self.crowd.rooms[0]
        for number in range(times):
            await self._typing(stream, writers[0].user, number % 2 == 0)
        async with asyncio.timeout(30.0):
            while not any(state["by"] == self.reader.user for state in self.witness.states):
                await self._typing(stream, writers[0].user, True)
                await self._typing(stream, self.reader.user, True)
                await asyncio.sleep(0.25)

    async def _typing(self, stream: str, by: str, on: bool) -> None:
        actor = Actor("user", by, "typist")
        await self.crowd.router.signal(Signal("conversation", stream[13:], "typing", actor, canonical_json({"on": on})))


def own_bytes(gateway: Part) -> int:
    """Its memory without what it still shares with the process that it was forked from."""
    return int(psutil.Process(gateway.pid).memory_full_info().uss)


async def highest(gateway: Part, until: asyncio.Event) -> int:
    """The most that it has taken until then."""
    most = own_bytes(gateway)
    while not until.is_set():
        await asyncio.sleep(0.2)
        most = max(most, own_bytes(gateway))
    return most


@pytest.mark.catalogue("R9", "one reads at 1 KB/s beside many who do not")
@pytest.mark.timeout(900)
async def test_who_reads_slowly_costs_the_others_nothing_and_has_everything_in_the_end(
    chaos: Chaos, houses: Houses, tmp_store: str
):
    rooms, members = chaos.choose(short=(2, 30), full=(11, 91))
    rate, backlog = chaos.choose(short=20, full=30), 2_000  # more takes longer than a ping may go unanswered
    chaos.load(f"{rate} msg/s to {rooms * members} readers in {rooms} conversations")
    parts = await houses.build(tmp_store, hosts=1, gateways=1)
    gateway = parts.gateways[0]
    crowd: Crowd = await houses.enter(Crowd(parts, window=16))
    await crowd.furnish(rooms, members=members)
    slow = await Sufferer.among(crowd)
    reader = slow.reader
    for each in (reader, slow.witness):
        each.start()
        await each.online()

    # It falls behind while everybody talks.
    reader.bytes_per_s = SLOW_BYTES_PER_S
    before, over = own_bytes(gateway), asyncio.Event()
    watching = asyncio.create_task(highest(gateway, over))

    async def fall_behind() -> None:
        await slow.stuff(backlog)
        await slow.type(TYPINGS)
        await asyncio.sleep(0.5)

    await crowd.talk(rate, 0.0, fall_behind)
    over.set()
    grown_mib = (await watching - before) / 2**20
    taken_bytes, missing = reader.taken_bytes, slow.behind()
    await slow.catches_up(60.0)
    with suppress(TimeoutError):
        async with asyncio.timeout(5.0):
            while "session.caught_up" not in reader.told:
                await asyncio.sleep(0.02)
    typed = [state["on"] for state in reader.states if state["by"] != reader.user]
    chaos.record(
        backlog_mib=round(backlog * len(TEXT) / 2**20, 1),
        taken_kib=round(taken_bytes / 1024, 1),
        gateway_grew_mib=round(grown_mib, 1),
        typing_shown=len(typed),
        cut=list(reader.ends),
        told={kind: reader.told.count(kind) for kind in ("session.lagging", "session.caught_up")},
    )
    if chaos.full:
        chaos.record(**await compared(chaos, crowd, slow, rate))
        await slow.catches_up(120.0)
    await crowd.settle()
    await asyncio.gather(reader.stop(), slow.witness.stop())
    chaos.no_faults(judge(crowd.evidence, await read_log(tmp_store), crowd.commits()), crowd.evidence)
    assert missing, "it was behind"
    assert not reader.ends or chaos.full, "nobody who reads is thrown out"
    assert grown_mib <= 8.0, "what waits for one reader is bounded"
    kinds = [kind for kind in reader.told if kind.startswith("session.")]
    assert kinds[:2] == ["session.lagging", "session.caught_up"]
    assert 1 <= len(typed) <= TYPINGS / 20, "of what somebody is just doing only the latest waits"
    assert typed[-1] is True
    if chaos.full:
        assert chaos.row.figures["slower"] <= 1.2


async def compared(chaos: Chaos, crowd: Crowd, slow: Sufferer, rate: float) -> dict[str, object]:
    """The others' delivery with the slow reader and without, in windows by turns: medians of the windows' p99.

    The clients keep a million objects as evidence; looking through those for cycles would be in the figures.
    """
    p99s: dict[bool, list[float]] = {True: [], False: []}
    gc.collect()
    gc.disable()
    for there in [True, False, False, True] * (ROUNDS // 2):
        await slow.reader.stop()
        if there:
            slow.reader.start()
            await slow.catches_up(120.0)
            slow.reader.bytes_per_s = SLOW_BYTES_PER_S
        await slow.stuff(1_000)
        began_s = perf_counter() + SETTLE_S
        await crowd.talk(rate, SETTLE_S + WINDOW_S)
        await crowd.settle()
        p99s[there].append(quantile(delivery_seconds(crowd, began_s), 0.99))
        chaos.tell(f"{'with' if there else 'without'} the slow reader: p99 {p99s[there][-1]:.4f} s")
    gc.enable()
    with_s, without_s = statistics.median(p99s[True]), statistics.median(p99s[False])
    return {
        "others_p99_with_ms": round(with_s * 1000, 2),
        "others_p99_without_ms": round(without_s * 1000, 2),
        "slower": round(with_s / without_s, 3),
        "windows_with_ms": [round(p99 * 1000, 1) for p99 in p99s[True]],
        "windows_without_ms": [round(p99 * 1000, 1) for p99 in p99s[False]],
    }


def delivery_seconds(crowd: Crowd, from_s: float) -> list[float]:
    """How long after it was due each message was shown to each of those who read at once."""
    sent = crowd.evidence.sent
    return [
        item.at_s - sent[item.what].due_s
        for (device, _), shown in crowd.evidence.shown.items()
        if device not in ("slow", "witness")
        for item in shown
        if item.what in sent and sent[item.what].due_s >= from_s
    ]
