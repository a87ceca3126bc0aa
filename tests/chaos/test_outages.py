"""What the platform stands on goes away and comes back, while people talk: nothing is lost, and nobody restarts a thing."""

import asyncio
import itertools
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import httpx
import msgspec
import pytest
import sqlalchemy as sa
import uuid_utils

from benchmarks.load.sockets import ChatSocket
from domain.commands import Actor, Attached, Query
from domain.errors import Refusal
from domain.ports import StoreUnavailable
from storage.engine import Database, migrate
from tests.chaos.conftest import Chaos, Houses, needs_mariadb
from tests.support import tight_host
from tests.support.crowd import Crowd, Device, log_in
from tests.support.oracle import Fault, ack_seconds, judge, quantile, read_log, spread
from tests.support.parts import Parts
from tests.support.servers import MariaDb, Nats, Valkey

GROWTH_BYTES = 100 * 2**20
"""What a process may grow by while something that it needs is away."""
CALM, CALM_S = 500, 120.0
"""So few that wait for an answer are no backlog, and so long it may take to get there."""
HEALED_S = 2.0
STORM_PATIENCE_S = 60.0
"""A storm without one deadlock has shown nothing: how much longer it may go on until there is one."""


class Onlooker:
    """Asks, ten times a second, where live conversations stand: a question that needs no database. How long each took."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self.took: list[tuple[float, float]] = []
        """(when it was asked, how long it took)"""
        self.refused: list[tuple[float, str]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Onlooker":
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        streams = list(self._crowd.evidence.opened.items())
        number = 0
        while True:
            stream, members = streams[number % len(streams)]
            number += 1
            began_s = perf_counter()
            try:
                query = Query("conversation", stream[13:], "attach", Actor("user", members[0], "onlooker"))
                answer = await self._crowd.router.ask(query, 2.0)
            except Refusal as refusal:
                self.refused.append((began_s, refusal.code.value))
            else:
                assert isinstance(answer, Attached)
                self.took.append((began_s, perf_counter() - began_s))
            await asyncio.sleep(0.1)

    def between(self, from_s: float, to_s: float) -> list[float]:
        return [took_s for at_s, took_s in self.took if from_s <= at_s < to_s]

    def refused_between(self, from_s: float, to_s: float) -> int:
        return sum(from_s <= at_s < to_s for at_s, _ in self.refused)


class Outage:
    """One outage: when it began and ended, for what follows from it."""

    def __init__(self, what: str, began_s: float) -> None:
        self.what = what
        self.began_s = began_s
        self.ended_s = began_s


class Growth:
    """How much the processes of a platform grow."""

    def __init__(self, parts: Parts) -> None:
        self._parts = [part for part in parts.parts.values() if part.role in ("host", "gateway")]
        self._before = {part.name: part.rss_bytes for part in self._parts}
        self.most: dict[str, int] = {}

    def look(self) -> None:
        for part in self._parts:
            assert part.running, f"{part.name} has ended:\n{part.output}"
            grown = part.rss_bytes - self._before[part.name]
            self.most[part.name] = max(grown, self.most.get(part.name, 0))


async def calm(crowd: Crowd) -> None:
    """Hardly anybody waits for an answer any more, or that takes too long."""
    deadline_s = perf_counter() + CALM_S
    while crowd.unsettled > CALM and perf_counter() < deadline_s:
        await asyncio.sleep(0.2)


def again_and_again(
    chaos: Chaos,
    crowd: Crowd,
    outages: list[Outage],
    times: int,
    faults: Sequence[Callable[[], Awaitable[None]]],
) -> Callable[[], Awaitable[None]]:
    """Each fault in turn, so many times, with a rest before each and after the last.

    The rest is as long as the clients need to send what piled up during the last fault: else it is overload that is tried.
    """

    async def work() -> None:
        for number in range(times):
            for fault in faults:
                await asyncio.sleep(2.0)
                await calm(crowd)
                outage = Outage(fault.__name__, perf_counter())
                outages.append(outage)
                crowd.happened(fault.__name__)
                await fault()
                outage.ended_s = perf_counter()
                chaos.tell(f"{fault.__name__}, {number + 1} of {times}, {crowd.unsettled} unsettled")
        await asyncio.sleep(3.0)

    return work


async def watched(work: Awaitable[None], growth: Growth) -> None:
    task = asyncio.ensure_future(work)
    while not task.done():
        growth.look()
        await asyncio.wait([task], timeout=0.25)
    await task


def healed_after(crowd: Crowd, outage: Outage, until_s: float) -> float:
    """From the end of an outage to the moment at which every conversation that has something to say has an acknowledgement."""
    first: dict[str, float] = {}
    waiting = {m.stream for m in crowd.evidence.sent.values() if m.due_s < outage.ended_s + 0.5}
    for message in crowd.evidence.sent.values():
        if message.acked and outage.ended_s <= message.acked_s < until_s:
            first[message.stream] = min(first.get(message.stream, message.acked_s), message.acked_s)
    missing = waiting - first.keys()
    if missing:
        return float("inf")
    return max(first.values(), default=outage.ended_s) - outage.ended_s


async def judged(
    chaos: Chaos,
    crowd: Crowd,
    parts: Parts,
    outages: list[Outage],
    onlooker: Onlooker,
    growth: Growth,
    *,
    reads_go_on: bool = True,
) -> None:
    """Write down the figures, and fail for every promise that was broken."""
    await crowd.settle()
    rows = await read_log(parts.database_url)
    ends = [outage.began_s for outage in outages[1:]] + [crowd.ended_s + 30]
    healed = {}
    for outage, until_s in zip(outages, ends, strict=True):
        healed[outage.what] = max(healed.get(outage.what, 0.0), healed_after(crowd, outage, until_s))
    calm = onlooker.between(crowd.began_s, outages[0].began_s)
    troubled = [took for outage in outages for took in onlooker.between(outage.began_s, outage.ended_s)]
    refused: dict[str, int] = {}
    for outage in outages:
        count = onlooker.refused_between(outage.began_s, outage.ended_s)
        refused[outage.what] = refused.get(outage.what, 0) + count
    chaos.record(
        ack=spread(ack_seconds(crowd.evidence)),
        healed_max_s={what: round(took_s, 2) for what, took_s in healed.items()},
        reads_calm=spread(calm),
        reads_in_outage=spread(troubled),
        reads=len(troubled),
        reads_refused=refused,
        grown_mib={name: round(grown / 2**20, 1) for name, grown in growth.most.items()},
        errors=dict(crowd.evidence.errors.most_common(6)),
    )
    chaos.no_faults(judge(crowd.evidence, rows, crowd.commits()), crowd.evidence)
    assert not parts.unforeseen
    assert max(growth.most.values()) < GROWTH_BYTES
    assert max(healed.values()) < chaos.seconds(short=3 * HEALED_S, full=2 * HEALED_S)
    if reads_go_on:
        assert len(troubled) > 9 * sum(refused.values())
        assert quantile(troubled, 0.9) < chaos.seconds(short=0.5, full=max(0.05, 2 * quantile(calm, 0.99)))


# --- R6: the database --------------------------------------------------------------------------------------------


@pytest.fixture
def mariadb() -> Iterator[MariaDb]:
    needs_mariadb()
    with MariaDb("--max-connections=60", "--innodb-lock-wait-timeout=2") as server:
        asyncio.run(migrate(server.url("renoveasy"), "chaos"))
        yield server


async def deadlock_storm(mariadb: MariaDb, url: str, seconds: float) -> int:
    """Somebody else locks rows that the platform writes, in the opposite order, in transactions that InnoDB holds dearer
    than the platform's: those are the ones it ends. As long as said, and on until there was a deadlock. How many there were."""
    mariadb.execute("CREATE DATABASE IF NOT EXISTS storm; CREATE TABLE IF NOT EXISTS storm.weight (n INT)")
    counted = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Innodb_deadlocks'"
    before = int(mariadb.execute(counted))
    database = Database(url)
    ending = perf_counter() + seconds

    async def deadlocks() -> int:
        return int(await asyncio.to_thread(mariadb.execute, counted)) - before

    async def over() -> bool:
        now = perf_counter()
        return now > ending and (now > ending + STORM_PATIENCE_S or await deadlocks() > 0)

    async def stir() -> None:
        while not await over():
            with suppress(StoreUnavailable):
                async with database.write() as connection:
                    await connection.exec_driver_sql("INSERT INTO storm.weight SELECT seq FROM seq_1_to_2000")
                    rows = await connection.exec_driver_sql("SELECT id FROM conversation ORDER BY id DESC LIMIT 30")
                    for (identifier,) in rows.all():
                        await connection.exec_driver_sql(
                            "SELECT id FROM conversation WHERE id = %s FOR UPDATE", (identifier,)
                        )
                        await asyncio.sleep(0.002)
                    await connection.rollback()
            await asyncio.sleep(0.02)

    await asyncio.gather(stir(), stir())
    await database.close()
    return await deadlocks()


@pytest.mark.catalogue("R6", "MariaDB: restarted, kill -9, SIGSTOP, out of connections, deadlock storm")
@pytest.mark.timeout(7200)
async def test_the_database_goes_and_comes_back(chaos: Chaos, houses: Houses, mariadb: MariaDb):
    url = mariadb.url("renoveasy")
    times, paused_s = chaos.repeats(short=1, full=20), chaos.seconds(short=4.0, full=30.0)
    busy_s = chaos.seconds(short=3.0, full=10.0)
    rate, rooms = chaos.choose(short=60, full=300), chaos.choose(short=20, full=100)
    chaos.load(f"{rate} writes/s over {rooms} conversations")
    parts = await houses.build(url, hosts=2, gateways=1)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(rooms)
    onlooker: Onlooker = await houses.enter(Onlooker(crowd))
    outages: list[Outage] = []
    deadlocks: list[int] = []

    async def restart() -> None:
        await asyncio.to_thread(mariadb.stop)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(mariadb.start)

    async def kill() -> None:
        mariadb.kill()
        await asyncio.sleep(1.0)
        await asyncio.to_thread(mariadb.start)

    async def pause() -> None:
        mariadb.pause()
        await asyncio.sleep(paused_s)
        mariadb.resume()

    async def exhaust() -> None:
        """Others have every connection; what the platform had is cut, and there is none to be had."""
        greedy = Database(url)
        taken = [await greedy.writer() for _ in range(10)]
        numbers = [await connection.scalar(sa.text("SELECT connection_id()")) for connection in taken]
        ours = ",".join(map(str, numbers))
        theirs = f"SELECT id FROM information_schema.processlist WHERE user = '{mariadb.user}' AND id NOT IN ({ours})"
        kills = "".join(f"KILL {number};" for number in mariadb.execute(theirs).split())
        # One connection beyond the limit is kept for administrators, who the test's users are, so the test holds it.
        whole = f"SET GLOBAL max_connections = 10;{kills}DO SLEEP({busy_s});SET GLOBAL max_connections = 60"
        await asyncio.to_thread(mariadb.execute, whole)
        for connection in taken:
            await connection.close()
        await greedy.close()

    async def storm() -> None:
        deadlocks.append(await deadlock_storm(mariadb, url, busy_s))

    growth = Growth(parts)
    work = again_and_again(chaos, crowd, outages, times, (restart, kill, pause, exhaust, storm))
    await crowd.talk(rate, 0.0, lambda: watched(work(), growth))
    chaos.record(deadlocks=sum(deadlocks))
    assert sum(deadlocks) > 0
    await judged(chaos, crowd, parts, outages, onlooker, growth)


@pytest.mark.catalogue("R6b", "MariaDB: SIGSTOP, and more commands than a host may hold")
@pytest.mark.timeout(300)
async def test_a_host_without_its_database_holds_no_more_than_it_may(chaos: Chaos, houses: Houses, mariadb: MariaDb):
    """Room for 200 commands, 1,500 on their way: the rest is told `busy`, comes again, and all of it lands once."""
    url = mariadb.url("renoveasy")
    planted = {"PART_WIRING": "tests.support.tight_host:plant"}
    parts = await houses.build(url, hosts=1, gateways=0, environments={"host-0": planted})
    crowd: Crowd = await houses.enter(Crowd(parts, window=25))
    await crowd.furnish(30, writers=2, sockets=False)
    host, deepest = parts.hosts[0], 0.0
    before = host.rss_bytes
    mariadb.pause()
    for _ in range(25):
        for stream, writers in crowd.rooms:
            for device in writers:
                device.say(crowd.message(stream, device))
    for _ in range(8):
        await asyncio.sleep(0.5)
        deepest = max(deepest, (await host.stats())["metrics"].get("pending_commits", 0.0))
    grown = host.rss_bytes - before
    mariadb.resume()
    await crowd.settle()
    busy = (await host.stats())["metrics"].get("busy_answers", 0.0)
    chaos.record(deepest=deepest, busy=busy, grown_mib=round(grown / 2**20, 1))
    chaos.no_faults(judge(crowd.evidence, await read_log(url), crowd.commits()), crowd.evidence)
    assert 0 < deepest <= tight_host.ROOM
    assert busy > 0
    assert grown < GROWTH_BYTES


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.catalogue("R6s", "SQLite: locked by another program")
@pytest.mark.timeout(3600)
async def test_another_program_locks_the_database_file(chaos: Chaos, houses: Houses, tmp_store: str):
    times, seconds = chaos.repeats(short=1, full=20), chaos.seconds(short=6.0, full=30.0)
    chaos.load("60 writes/s over 20 conversations")
    parts = await houses.build(tmp_store, hosts=2, gateways=1)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(20)
    onlooker: Onlooker = await houses.enter(Onlooker(crowd))
    outages: list[Outage] = []

    async def lock() -> None:
        path = tmp_store.partition(":///")[2]
        locker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LOCKER, path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert locker.stdout is not None
        await locker.stdout.readline()
        await asyncio.sleep(seconds)
        locker.kill()
        await locker.wait()

    growth = Growth(parts)
    work = again_and_again(chaos, crowd, outages, times, (lock,))
    await crowd.talk(60, 0.0, lambda: watched(work(), growth))
    await judged(chaos, crowd, parts, outages, onlooker, growth)


# --- R5: the broker ----------------------------------------------------------------------------------------------


class Listener:
    """A connection that keeps the types of what its user is told on their own channel."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lost_because: list[str] = []
        self.socket: ChatSocket | None = None

    async def connect(self, parts: Parts, user: str) -> None:
        (token,) = await log_in(parts, [user])
        self.socket = await ChatSocket.open(parts.websocket, token)
        self.socket.traffic = self

    async def __aenter__(self) -> "Listener":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.socket is not None:
            self.socket.close()

    def pushed(self, line: bytes, now_s: float) -> None:
        self.told.append(str(msgspec.json.decode(line)["push"]["pub"]["data"]["type"]))

    def replied(self, command_id: int, line: bytes, now_s: float) -> None: ...

    def lost(self, reason: str) -> None:
        self.lost_because.append(reason)


@pytest.mark.catalogue("R5", "NATS: restarted, kill -9, SIGSTOP")
@pytest.mark.timeout(7200)
async def test_the_broker_goes_and_comes_back(chaos: Chaos, houses: Houses, tmp_store: str, nats: Nats):
    times, paused_s = chaos.repeats(short=1, full=20), chaos.seconds(short=8.0, full=30.0)
    rate, rooms = chaos.choose(short=60, full=1000), chaos.choose(short=20, full=200)
    chaos.load(f"{rate} msg/s over {rooms} conversations")
    parts = await houses.build(tmp_store, hosts=2, gateways=2)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(rooms)
    listener: Listener = await houses.enter(Listener())
    await listener.connect(parts, str(uuid_utils.uuid7()))
    onlooker: Onlooker = await houses.enter(Onlooker(crowd))
    outages: list[Outage] = []

    async def restart() -> None:
        await asyncio.to_thread(nats.stop)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(nats.start)

    async def kill() -> None:
        nats.kill()
        await asyncio.sleep(1.0)
        await asyncio.to_thread(nats.start)

    async def pause() -> None:
        nats.pause()
        await asyncio.sleep(paused_s)
        nats.resume()

    growth = Growth(parts)
    work = again_and_again(chaos, crowd, outages, times, (restart, kill, pause))
    await crowd.talk(rate, 0.0, lambda: watched(work(), growth))
    chaos.record(told=Counter(listener.told))
    await judged(chaos, crowd, parts, outages, onlooker, growth, reads_go_on=False)
    assert not listener.lost_because
    assert all(device.connections == 1 for device in crowd.devices if isinstance(device, Device))
    assert listener.told == ["service.degraded", "service.restored"] * len(outages)


async def heard_in_part(chaos: Chaos, houses: Houses, url: str, audit_s: float) -> tuple[list[Fault], Counter[str]]:
    """Talk through a gateway that loses every fifth delivery without a sign; what the judge says, and what it counted."""
    seconds = chaos.seconds(short=4.0, full=60.0)
    planted = {"PART_WIRING": "tests.support.lossy_ears:plant", "LOSSY_AUDIT_S": str(audit_s)}
    parts = await houses.build(url, hosts=1, gateways=1, environments={"gateway-0": planted})
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(30)
    await crowd.talk(60, seconds)
    await crowd.settle(limit_s=10.0 if audit_s else 1.0)
    counted = Counter((await parts.parts["gateway-0"].stats())["metrics"])
    return judge(crowd.evidence, await read_log(url), crowd.commits()), counted


@pytest.mark.catalogue("R5l", "the broker loses every fifth delivery and tells nobody")
@pytest.mark.timeout(300)
async def test_what_the_broker_loses_without_a_sign_is_found_and_fetched(chaos: Chaos, houses: Houses, tmp_store: str):
    faults, counted = await heard_in_part(chaos, houses, tmp_store, audit_s=1.0)
    missed, silent = counted["gateway_missed_events"], counted["gateway_silent_losses"]
    chaos.record(missed=missed, silent=silent, faults=len(faults))
    assert faults == []
    assert missed > 10
    assert silent > 0


@pytest.mark.catalogue("R5l-", "negative control: the same, and nobody compares heads")
@pytest.mark.timeout(300)
async def test_without_comparing_heads_the_last_event_of_a_stream_would_be_lost(
    chaos: Chaos, houses: Houses, tmp_store: str
):
    faults, _ = await heard_in_part(chaos, houses, tmp_store, audit_s=0.0)
    chaos.record(faults=len(faults))
    assert {fault.promise for fault in faults} == {"L"}


# --- R7: Redis ---------------------------------------------------------------------------------------------------


class Caller:
    """Somebody at the REST interface, from an address of their own."""

    _addresses = itertools.count(2)

    def __init__(self, parts: Parts) -> None:
        address = f"127.0.0.{next(self._addresses)}"
        transport = httpx.AsyncHTTPTransport(local_address=address)
        self._client = httpx.AsyncClient(base_url=parts.rest, transport=transport, timeout=10)
        self.phone = f"+86138{next(self._addresses):08d}"

    async def __aenter__(self) -> "Caller":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask_for_code(self) -> int:
        return (await self._client.post("/v1/auth/otp", json={"phone": self.phone})).status_code

    async def code(self) -> str:
        items = (await self._client.get("/dev/outbox", params={"to": self.phone})).json()["items"]
        return str(items[0]["code"])

    async def log_in(self, code: str) -> tuple[int, dict[str, Any]]:
        device = {"id": "d", "name": "phone", "platform": "ios"}
        asked = {"phone": self.phone, "code": code, "device": device}
        answer = await self._client.post("/v1/auth/otp/verify", json=asked)
        return answer.status_code, answer.json()

    async def me(self, token: str) -> tuple[int, str]:
        answer = await self._client.get("/v1/me", headers={"Authorization": f"Bearer {token}"})
        return answer.status_code, str(answer.json().get("id"))


@pytest.mark.catalogue("R7", "Redis: kill -9, SIGSTOP, FLUSHALL, restarted empty")
@pytest.mark.timeout(3600)
async def test_redis_goes_and_comes_back_empty(chaos: Chaos, houses: Houses, tmp_store: str):
    times = chaos.repeats(short=1, full=20)
    rate, rooms = chaos.choose(short=50, full=1000), chaos.choose(short=20, full=200)
    chaos.load(f"{rate} msg/s over {rooms} conversations, logins, rate limits on")
    with Valkey() as valkey:
        parts = await houses.build(
            tmp_store, redis_url=valkey.url, hosts=1, gateways=1, rest=True, environment={"RENOVEASY_RATE_LIMITS": "on"}
        )
        crowd: Crowd = await houses.enter(Crowd(parts))
        await crowd.furnish(rooms)
        slowest: list[float] = []

        async def hurt() -> None:
            for _ in range(times):
                await redis_is_hurt(houses, parts, valkey, slowest)

        await crowd.talk(rate, 1.0, hurt)
        await crowd.settle()
        chaos.record(ack=spread(ack_seconds(crowd.evidence)), rest_in_outage=spread(slowest))
        chaos.no_faults(judge(crowd.evidence, await read_log(tmp_store), crowd.commits()), crowd.evidence)
        assert not crowd.evidence.errors
        assert max(ack_seconds(crowd.evidence)) < 5.0


async def redis_is_hurt(houses: Houses, parts: Parts, valkey: Valkey, slowest: list[float]) -> None:
    """One round of everything that can happen to Redis, and what logins and rates make of it."""
    known, late, flushed, fresh = [await houses.enter(Caller(parts)) for _ in range(4)]
    assert await known.ask_for_code() == 202
    status, session = await known.log_in(await known.code())
    assert status == 200
    token, user = session["access_token"], session["user"]["id"]
    assert await late.ask_for_code() == 202
    code = await late.code()
    for hurt in (valkey.kill, valkey.pause):
        if not valkey.running:
            valkey.start()
        hurt()
        # Codes: nothing is let through. Everything else goes on, and as the same person.
        assert await fresh.ask_for_code() == 503
        status, answer = await late.log_in(code)
        assert (status, answer["code"]) == (503, "unavailable")
        for _ in range(5):
            began_s = perf_counter()
            assert await known.me(token) == (200, user)
            slowest.append(perf_counter() - began_s)
        valkey.resume() if valkey.running else None
    valkey.restart()
    await asyncio.sleep(1.0)
    status, answer = await late.log_in(code)
    assert (status, answer["code"]) == (401, "unauthenticated"), "a code that Redis has forgotten"
    assert await flushed.ask_for_code() == 202
    code = await flushed.code()
    with socket.create_connection(("127.0.0.1", valkey.port)) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(5) == b"+OK\r\n"
    assert (await flushed.log_in(code))[0] == 401
    assert await fresh.ask_for_code() == 202
    status, session = await fresh.log_in(await fresh.code())
    assert status == 200
    assert session["user"]["id"] != user
    assert await known.me(token) == (200, user)
