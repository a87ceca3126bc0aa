"""The network between the parts fails, in one direction or in both: two owners of one conversation never both acknowledge.

R8 puts a gateway and a host into network namespaces of their own and drops their packets. The tests of stale owners need no
root: there the brokers' own link fails, so that a host and its clients sit on one side and placement on the other.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from time import perf_counter
from typing import Literal, NamedTuple

import msgspec
import pytest
import uuid_utils

from actors.router import BrokerRouter
from benchmarks.load.sockets import ChatSocket
from deploy.connections import SystemClock
from domain.channels import event_subject, stream_partition
from domain.commands import Accepted, Actor, Attached, Command, Delivery, Query, Signal, Status, canonical_json
from domain.errors import Code, Refusal
from domain.ports import NoMetrics
from storage.broker import NatsBroker
from storage.engine import migrate
from tests.chaos.conftest import Chaos, Houses, needs_mariadb
from tests.support import netns
from tests.support.crowd import Crowd, log_in
from tests.support.netns import Direction, FarParts, MariaDbOnNetwork, NatsOnNetwork, Network
from tests.support.oracle import TAKEOVER, ack_seconds, judge, read_log, spread
from tests.support.parts import Parts
from tests.support.servers import Nats, free_port
from tests.support.wire import Wire

UNDISTURBED = {"RENOVEASY_END_PAUSED_HOSTS": "off"}
"""Whoever is cut off lives on: as on another machine, where nobody reaches it to end it."""


class Cut(NamedTuple):
    """A part that loses a server, and in which direction."""

    part: str
    server: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.part}-{self.server} {self.direction}"


def cuts(chaos: Chaos) -> list[Cut]:
    """Every pair in every direction; the short form takes the four that differ most."""
    short = [
        Cut("host-0", "nats", "in"),
        Cut("host-0", "database", "out"),
        Cut("gateway-0", "nats", "both"),
        Cut("host-0", "nats", "both"),
    ]
    directions: tuple[Direction, ...] = ("both", "in", "out")
    pairs = [("gateway-0", "nats"), ("host-0", "database"), ("host-0", "nats"), ("gateway-0", "database")]
    every = [Cut(part, server, direction) for direction in directions for part, server in pairs]
    return every if chaos.full else short


@pytest.fixture
def network() -> Iterator[Network]:
    if why := netns.missing():
        pytest.skip(why)
    needs_mariadb()
    with Network() as made:
        yield made


@pytest.mark.catalogue("R8", "partitions: gateway, host against NATS, database; one way and two way")
@pytest.mark.timeout(7200)
async def test_parts_lose_the_network(chaos: Chaos, network: Network, houses: Houses):
    rate, rooms = chaos.choose(short=60, full=500), chaos.choose(short=20, full=100)
    chaos.load(f"{rate} msg/s over {rooms} conversations")
    spaces = {name: network.namespace() for name in ("host-0", "gateway-0")}
    with NatsOnNetwork(network) as nats, MariaDbOnNetwork(network) as mariadb:
        url = mariadb.url("renoveasy")
        await migrate(url, "chaos")
        parts = FarParts(
            url,
            nats.url,
            hosts=2,
            gateways=1,
            wraps={name: space.wrap for name, space in spaces.items()},
            environments={"gateway-0": {"RENOVEASY_BIND": "0.0.0.0", "RENOVEASY_ENV": "dev"}},
            environment=UNDISTURBED,
        )
        parts.gateway_address = spaces["gateway-0"].address
        await houses.enter(parts)
        crowd: Crowd = await houses.enter(Crowd(parts))
        await crowd.furnish(rooms)
        servers = {"nats": (nats.address, nats.port), "database": (mariadb.address, mariadb.port)}
        healed: dict[str, float] = {}
        planned = cuts(chaos)
        repeats = chaos.repeats(short=len(planned), full=40)

        async def work() -> None:
            for number, cut in enumerate(itertools.islice(itertools.cycle(planned), repeats)):
                await asyncio.sleep(1.5)
                space = spaces[cut.part]
                crowd.happened(f"cut {cut}")
                space.cut(*servers[cut.server], cut.direction)
                await asyncio.sleep(chaos.random.uniform(5, 60) if chaos.full else 3.0)
                space.heal()
                crowd.happened("heal")
                healed[str(cut)] = max(healed.get(str(cut), 0.0), await served_everywhere(crowd))
                chaos.tell(f"{cut}, {number + 1} of {repeats}, {crowd.unsettled} unsettled")

        await crowd.talk(rate, 0.0, work)
        await crowd.settle()
        rows = await read_log(url)
        chaos.record(
            ack=spread(ack_seconds(crowd.evidence)),
            healed_max_s={what: round(took_s, 2) for what, took_s in healed.items()},
            takeovers=sum(row.type == TAKEOVER for row in rows),
            errors=dict(crowd.evidence.errors.most_common(6)),
        )
        chaos.no_faults(judge(crowd.evidence, rows, crowd.commits()), crowd.evidence)
        assert not parts.unforeseen
        assert max(healed.values()) < 10.0


async def served_everywhere(crowd: Crowd) -> float:
    """How long from now until every conversation has had a message acknowledged that was due after now."""
    began_s = perf_counter()
    async with asyncio.timeout(30):
        while True:
            served = {m.stream for m in crowd.evidence.sent.values() if m.acked and m.acked_s > began_s}
            if len(served) == len(crowd.rooms):
                return perf_counter() - began_s
            await asyncio.sleep(0.02)


# --- what a stale owner may still say ----------------------------------------------------------------------------


class LinkedNats(Nats):
    """One of two NATS servers that are one broker, as long as the link between them holds."""

    def __init__(self, link_port: int = 0) -> None:
        """The one that is given a port connects to the other there."""
        super().__init__()
        self.link_port = link_port
        self.cluster_port = free_port()

    def command(self) -> list[str]:
        cluster = ["--cluster_name", "pair", "--cluster", f"nats://127.0.0.1:{self.cluster_port}", "--no_advertise"]
        routes = ["--routes", f"nats://127.0.0.1:{self.link_port}"] if self.link_port else []
        return [*super().command(), *cluster, *routes]


class Split:
    """Two sides of a platform. On the far side a host and whoever asks it; on the near side placement and all others.

    While the link is cut, the far host keeps its clients and its database, and hears nothing of being replaced.
    """

    def __init__(self, near: LinkedNats, far: LinkedNats, link: Wire, parts: Parts) -> None:
        self.near, self.far, self.link, self.parts = near, far, link, parts
        self.near_broker, self.far_broker = NatsBroker(near.url), NatsBroker(far.url)
        self.near_side = BrokerRouter(self.near_broker, SystemClock(), NoMetrics())
        self.far_side = BrokerRouter(self.far_broker, SystemClock(), NoMetrics())
        self.user, self.other = str(uuid_utils.uuid7()), str(uuid_utils.uuid7())
        self.stream = ""

    async def start(self) -> None:
        await self.near_broker.start()
        await self.far_broker.start()
        # Conversations until one lives in the far host.
        while not self.stream:
            stream = f"conversation:{uuid_utils.uuid7()}"
            payload = canonical_json({"member_ids": [self.user, self.other]})
            await self.near_side.ask(self._command(stream, "open", payload), 10.0)
            if (await self.owner_of(stream)).startswith("host-0/"):
                self.stream = stream

    async def close(self) -> None:
        await self.near_broker.close()
        await self.far_broker.close()

    async def owner_of(self, stream: str) -> str:
        rows = await read_log(self.parts.database_url)
        takeovers = [row for row in rows if row.type == TAKEOVER and row.partition == stream_partition(stream)]
        return takeovers[-1].actor

    def _command(self, stream: str, name: str, payload: bytes) -> Command:
        actor = Actor("user", self.user, "device")
        return Command("conversation", stream[13:], name, actor, str(uuid_utils.uuid7()), payload)

    async def write(self, router: BrokerRouter) -> tuple[str, int]:
        """A message, as its id and its offset."""
        command = self._command(self.stream, "send", canonical_json({"text": "hello"}))
        answer = await router.ask(command, 10.0)
        assert isinstance(answer, Accepted)
        return command.command_id, answer.offset

    async def taken_over(self, limit_s: float = 10.0) -> None:
        """Return when the near host has taken the conversation's partition."""
        async with asyncio.timeout(limit_s):
            while not (await self.owner_of(self.stream)).startswith("host-1/"):
                await asyncio.sleep(0.05)

    def question(self, name: Literal["attach", "status"], command_id: str = "") -> Query:
        return Query("conversation", self.stream[13:], name, Actor("user", self.user, "device"), command_id)

    def typing(self, user: str) -> Signal:
        return Signal("conversation", self.stream[13:], "typing", Actor("user", user, "device"), b'{"on":true}')


@pytest.fixture
async def split(request: pytest.FixtureRequest, houses: Houses, tmp_store: str) -> AsyncIterator[Split]:
    with LinkedNats() as near:
        async with Wire(near.cluster_port) as link:
            with LinkedNats(link.port) as far:
                far_side = {"RENOVEASY_NATS_URL": far.url} | getattr(request, "param", {})
                parts = Parts(tmp_store, near.url, hosts=2, gateways=1, environments={"host-0": far_side})
                parts.environment |= UNDISTURBED
                parts.parts["placement"].environment |= UNDISTURBED
                await houses.enter(parts)
                made = Split(near, far, link, parts)
                await made.start()
                yield made
                await made.close()
                await houses.close()


async def stale_answers(split: Split, command_id: str, head: int) -> list[str]:
    """What the far side says for a while that is no longer true: heads before `head`, or that the id has not landed."""
    stale = []
    ending = perf_counter() + 1.5
    while perf_counter() < ending:
        for query in (split.question("attach"), split.question("status", command_id)):
            with suppress(Refusal):
                answer = await split.far_side.ask(query, 0.3)
                if isinstance(answer, Attached) and answer.head < head:
                    stale.append(f"the head is {answer.head}")
                if isinstance(answer, Status) and not answer.known:
                    stale.append("the message has not landed")
    return stale


@pytest.mark.catalogue("F", "a host cut off from placement, replaced, and asked by those who still reach it")
@pytest.mark.timeout(120)
async def test_an_owner_that_was_replaced_without_knowing_it_says_nothing_stale(chaos: Chaos, split: Split):
    await split.write(split.far_side)
    assert isinstance(await split.far_side.ask(split.question("attach"), 5.0), Attached)
    split.link.cut()
    await split.taken_over()
    command_id, head = await split.write(split.near_side)
    stale = await stale_answers(split, command_id, head)
    chaos.record(stale=len(stale))
    assert stale == []
    with pytest.raises(Refusal) as refused:
        await split.far_side.ask(split.question("attach"), 0.5)
    assert refused.value.code is Code.UNAVAILABLE
    split.link.heal()
    async with asyncio.timeout(10):
        while True:
            with suppress(Refusal):
                answer = await split.far_side.ask(split.question("attach"), 1.0)
                assert isinstance(answer, Attached)
                assert answer.head == head
                break


@pytest.mark.catalogue("F-", "negative control: a host that trusts its lease for ever")
@pytest.mark.parametrize("split", [{"PART_WIRING": "tests.support.endless_lease:plant"}], indirect=True)
@pytest.mark.timeout(120)
async def test_a_host_that_trusted_its_lease_for_ever_would_be_found(chaos: Chaos, split: Split):
    await split.write(split.far_side)
    split.link.cut()
    await split.taken_over()
    command_id, head = await split.write(split.near_side)
    stale = await stale_answers(split, command_id, head)
    chaos.record(stale=len(stale))
    assert stale


class Follower:
    """A client of the near gateway that follows the conversation: the offsets it was shown, and who was said to be typing."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.typing: list[str] = []
        self.socket: ChatSocket | None = None

    async def follow(self, split: Split) -> None:
        (token,) = await log_in(split.parts, [split.user])
        self.socket = await ChatSocket.open(split.parts.websocket, token)
        self.socket.traffic = self
        await self.socket.call("subscribe", {"channel": split.stream})

    async def __aenter__(self) -> "Follower":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.socket is not None:
            self.socket.close()

    def pushed(self, line: bytes, now_s: float) -> None:
        publication = msgspec.json.decode(line)["push"].get("pub", {})
        if "offset" in publication:
            self.offsets.append(publication["offset"])
        elif publication.get("data", {}).get("type") == "typing":
            self.typing.append(publication["data"]["by"])

    def replied(self, command_id: int, line: bytes, now_s: float) -> None: ...

    def lost(self, reason: str) -> None: ...


async def until(true: Callable[[], object], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not true():
            await asyncio.sleep(0.02)


@pytest.mark.catalogue("F", "ephemeral publications of a replaced owner")
@pytest.mark.timeout(120)
async def test_what_a_replaced_owner_whispers_reaches_no_client(chaos: Chaos, houses: Houses, split: Split):
    """It may publish that somebody is typing until it learns of its end; whoever has heard its successor drops that."""
    follower: Follower = await houses.enter(Follower())
    await follower.follow(split)
    heard: list[Delivery] = []
    decode = msgspec.msgpack.Decoder(Delivery).decode
    await split.near_broker.subscribe(event_subject(split.stream), lambda received: heard.append(decode(received.data)))
    await split.far_side.signal(split.typing(split.user))
    await until(lambda: follower.typing == [split.user])
    split.link.cut()
    await split.taken_over()
    await split.far_side.signal(split.typing(split.other))
    _, head = await split.write(split.near_side)
    await until(lambda: follower.offsets[-1:] == [head])
    successor = heard[-1].owner
    split.link.heal()
    await until(
        lambda: heard[-1].owner < successor, 40.0
    )  # TCP tries again the more seldom the longer the link was cut
    assert b"typing" in heard[-1].items[0].data
    await split.near_side.signal(split.typing(split.user))
    await until(lambda: len(follower.typing) > 1)
    chaos.record(whispers_dropped=1)
    assert follower.typing == [split.user, split.user]
