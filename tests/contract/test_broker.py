"""`ports.Broker`: what every broker promises, and what only a real server can break."""

import asyncio
import gc
import importlib.metadata
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from domain.ports import Broker, BrokerUnavailable, NoResponders, Received, RequestTimeout
from storage.broker import MAX_MESSAGE_BYTES, NATS_PY, NatsBroker
from storage.memory_broker import MemoryBroker, MemoryBus
from tests.support.servers import Nats

Connect = Callable[..., Awaitable[Broker]]


@pytest.fixture(scope="module")
def nats() -> Iterator[Nats]:
    with Nats() as server:
        yield server


@pytest.fixture
async def connect_nats(nats: Nats) -> AsyncIterator[Connect]:
    if not nats.running:
        nats.start()
    brokers: list[NatsBroker] = []

    async def connect(prefix: str = "") -> NatsBroker:
        brokers.append(await NatsBroker(nats.url, prefix).start())
        return brokers[-1]

    yield connect
    for broker in brokers:
        await broker.close()


@pytest.fixture
async def connect_memory() -> AsyncIterator[Connect]:
    bus = MemoryBus()
    brokers: list[MemoryBroker] = []

    async def connect(prefix: str = "") -> MemoryBroker:
        brokers.append(MemoryBroker(bus, prefix))
        return brokers[-1]

    yield connect
    for broker in brokers:
        await broker.close()


@pytest.fixture(params=["memory", "nats"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Connects one more client to the same server."""
    connect: Connect = request.getfixturevalue(f"connect_{request.param}")
    return connect


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


# --- what every broker promises ---


async def test_a_subscriber_hears_what_is_published_afterwards_in_order(connect: Connect) -> None:
    sender, receiver = await connect(), await connect()
    heard: list[bytes] = []
    await receiver.subscribe("ev.order.1", lambda message: heard.append(message.data))
    for number in range(5_000):
        await sender.publish("ev.order.1", b"%d" % number)
    await until(lambda: len(heard) == 5_000)
    assert heard == [b"%d" % number for number in range(5_000)]


async def test_subscribing_is_done_when_the_server_knows_of_it(connect: Connect) -> None:
    sender, receiver = await connect(), await connect()
    heard: list[str] = []
    for number in range(200):
        subject = f"ev.order.{number}"
        await receiver.subscribe(subject, lambda message: heard.append(message.subject))
        await sender.publish(subject, b"")
    await until(lambda: len(heard) == 200)


async def test_a_message_carries_its_subject_and_any_bytes(connect: Connect) -> None:
    sender, receiver = await connect(), await connect()
    heard: list[Received] = []
    await receiver.subscribe("ev.装修", heard.append)
    payloads = [b"", bytes(range(256)), "砌墙 🧱\r\nPUB x 0".encode(), b"\r\n" * 50, b"x" * MAX_MESSAGE_BYTES]
    for payload in payloads:
        await sender.publish("ev.装修", payload)
    await until(lambda: len(heard) == len(payloads))
    assert heard == [Received("ev.装修", payload, "") for payload in payloads]


async def test_a_message_over_the_limit_is_refused_here(connect: Connect) -> None:
    broker = await connect()
    with pytest.raises(ValueError, match="524289"):
        await broker.publish("a", b"x" * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ValueError, match="524289"):
        await broker.request("a", b"x" * (MAX_MESSAGE_BYTES + 1), 1.0)


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0", "a.*", ">", "a..b", ".a", "a.", "a\tb", "a\nb"])
async def test_a_subject_is_checked_before_it_reaches_the_wire(connect: Connect, subject: str) -> None:
    broker = await connect()
    with pytest.raises(ValueError, match="not a subject"):
        await broker.publish(subject, b"")
    with pytest.raises(ValueError, match="not a subject"):
        await broker.request(subject, b"", 1.0)


async def test_a_subscription_may_be_a_pattern(connect: Connect) -> None:
    broker = await connect()
    heard: list[str] = []
    await broker.subscribe("ev.*.1", lambda message: heard.append(f"one {message.subject}"))
    await broker.subscribe("ev.>", lambda message: heard.append(f"all {message.subject}"))
    for subject in ("ev.order.1", "ev.order.2", "ev.order.1.x", "ev", "other.order.1"):
        await broker.publish(subject, b"")
    await broker.publish("ev.end", b"")
    await until(lambda: "all ev.end" in heard)
    assert sorted(heard) == ["all ev.end", "all ev.order.1", "all ev.order.1.x", "all ev.order.2", "one ev.order.1"]


async def test_a_stopped_subscription_hears_nothing_more(connect: Connect) -> None:
    sender, receiver = await connect(), await connect()
    stopped: list[bytes] = []
    others: list[bytes] = []
    subscription = await receiver.subscribe("ev.order.1", lambda message: stopped.append(message.data))
    await receiver.subscribe("ev.order.1", lambda message: others.append(message.data))
    await sender.publish("ev.order.1", b"before")
    await until(lambda: stopped == [b"before"])
    await subscription.stop()
    await subscription.stop()
    await sender.publish("ev.order.1", b"after")
    await until(lambda: others == [b"before", b"after"])
    assert stopped == [b"before"]


async def test_a_request_gets_its_own_answer(connect: Connect) -> None:
    asker, answerer = await connect(), await connect()
    answers: set[asyncio.Task[None]] = set()

    def answer(message: Received) -> None:
        answers.add(asyncio.ensure_future(answerer.publish(message.reply, message.data[::-1])))

    await answerer.subscribe("cmd.7", answer)
    asked = [b"question %d" % number for number in range(300)]
    replies = await asyncio.gather(*(asker.request("cmd.7", question, 5.0) for question in asked))
    assert replies == [question[::-1] for question in asked]


async def test_a_request_that_nobody_listens_to_fails_at_once(connect: Connect) -> None:
    broker = await connect()
    began = time.monotonic()
    with pytest.raises(NoResponders):
        await broker.request("cmd.nobody", b"", 10.0)
    assert time.monotonic() - began < 1.0


async def test_a_request_without_an_answer_times_out_and_a_late_answer_disturbs_nobody(connect: Connect) -> None:
    asker, answerer = await connect(), await connect()
    asked: list[Received] = []
    await answerer.subscribe("cmd.7", asked.append)
    with pytest.raises(RequestTimeout):
        await asker.request("cmd.7", b"first", 0.1)
    await answerer.publish(asked[0].reply, b"late")
    question = asyncio.ensure_future(asker.request("cmd.7", b"second", 5.0))
    await until(lambda: len(asked) == 2)
    await answerer.publish(asked[1].reply, b"in time")
    await answerer.publish(asked[1].reply, b"twice")
    assert await question == b"in time"
    await asker.confirm()


async def test_a_handler_that_fails_is_logged_and_the_next_message_comes(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await connect()
    heard: list[bytes] = []

    def handler(message: Received) -> None:
        heard.append(message.data)
        if message.data == b"poison":
            raise RuntimeError("cannot digest")

    await broker.subscribe("ev.order.1", handler)
    await broker.publish("ev.order.1", b"poison")
    await broker.publish("ev.order.1", b"fine")
    await until(lambda: heard == [b"poison", b"fine"])
    assert "cannot digest" in caplog.text


async def test_two_prefixes_on_one_server_do_not_hear_each_other(connect: Connect) -> None:
    mine, also_mine, other = await connect("a."), await connect("a."), await connect("b.")
    heard: dict[str, list[Received]] = {"mine": [], "other": []}
    answers: set[asyncio.Task[None]] = set()

    def answer(message: Received) -> None:
        heard["mine"].append(message)
        if message.reply:
            answers.add(asyncio.ensure_future(mine.publish(message.reply, b"from a")))

    await mine.subscribe("ev.order.1", answer)
    await other.subscribe(">", heard["other"].append)
    await also_mine.publish("ev.order.1", b"hello")
    assert await also_mine.request("ev.order.1", b"", 5.0) == b"from a"
    with pytest.raises(NoResponders):
        await (await connect("c.")).request("ev.order.1", b"", 5.0)
    assert [message.subject for message in heard["mine"]] == ["ev.order.1", "ev.order.1"]
    assert heard["other"] == []


async def test_a_prefix_is_a_word_of_its_own(connect: Connect) -> None:
    dotted, plain, without = await connect("a."), await connect("a"), await connect()
    heard: dict[str, list[str]] = {"dotted": [], "without": []}
    await dotted.subscribe("ev.x", lambda message: heard["dotted"].append(message.subject))
    for subject in ("aev.x", "ev.x", "a.ev.x"):
        await without.subscribe(subject, lambda message: heard["without"].append(message.subject))
    await plain.publish("ev.x", b"")
    await until(lambda: heard == {"dotted": ["ev.x"], "without": ["a.ev.x"]})


@pytest.mark.parametrize("prefix", ["a b", "*", "a.>", "a..", "."])
def test_a_prefix_that_no_subject_may_hold_is_refused(prefix: str) -> None:
    for broker in (lambda: NatsBroker("nats://127.0.0.1:1", prefix), lambda: MemoryBroker(prefix=prefix)):
        with pytest.raises(ValueError, match="not a subject"):
            broker()


async def test_a_closed_broker_is_unavailable(connect: Connect) -> None:
    broker = await connect()
    await broker.close()
    await broker.close()
    with pytest.raises(BrokerUnavailable):
        await broker.publish("a", b"")
    with pytest.raises(BrokerUnavailable):
        await broker.subscribe("a", lambda message: None)
    with pytest.raises(BrokerUnavailable):
        await broker.request("a", b"", 1.0)


async def test_what_was_published_before_closing_arrives(connect: Connect) -> None:
    sender, receiver = await connect(), await connect()
    heard: list[bytes] = []
    await receiver.subscribe("a", lambda message: heard.append(message.data))
    for number in range(1_000):
        await sender.publish("a", b"%d" % number)
    await sender.close()
    await until(lambda: len(heard) == 1_000)


# --- an outage, as simulations play it ---


async def test_on_a_bus_that_goes_down_everything_is_unavailable_until_it_comes_back() -> None:
    broker = MemoryBroker()
    heard: list[bytes] = []
    regained: list[bool] = []
    broker.on_reconnect(lambda: regained.append(True))
    await broker.subscribe("a", lambda message: heard.append(message.data))
    question = asyncio.ensure_future(broker.request("a", b"asked", 5.0))
    await until(lambda: heard == [b"asked"])
    broker.bus.go_down()
    with pytest.raises(BrokerUnavailable):
        await question
    with pytest.raises(BrokerUnavailable):
        await broker.publish("a", b"lost")
    broker.bus.come_back()
    await broker.publish("a", b"heard")
    await until(lambda: heard == [b"asked", b"heard"] and regained == [True])


# --- what only NATS can break ---


def test_the_overridden_seams_are_those_of_the_installed_version() -> None:
    assert importlib.metadata.version("nats-py") == NATS_PY


async def test_a_thousand_subscriptions_cost_no_task_and_few_pings(connect_nats: Connect) -> None:
    broker, sender = await connect_nats(), await connect_nats()
    assert isinstance(broker, NatsBroker)
    tasks = len(asyncio.all_tasks())
    heard: list[str] = []
    assert broker._link is not None
    pings = 0
    original = broker._link._process_pong

    async def counting() -> None:
        nonlocal pings
        pings += 1
        await original()

    broker._link._process_pong = counting  # type: ignore[method-assign]
    subscribing = (
        broker.subscribe(f"ev.order.{n}", lambda message: heard.append(message.subject)) for n in range(1_000)
    )
    await asyncio.gather(*subscribing)
    assert len(asyncio.all_tasks()) == tasks
    assert pings <= 5
    for number in range(1_000):
        await sender.publish(f"ev.order.{number}", b"")
    await until(lambda: len(heard) == 1_000)


async def test_a_lost_server_is_noticed_and_regained_with_all_subscriptions(nats: Nats, connect_nats: Connect) -> None:
    sender, receiver = await connect_nats(), await connect_nats()
    heard: list[bytes] = []
    regained: list[bool] = []
    lost: list[bool] = []
    receiver.on_lost(lambda: lost.append(not regained))
    receiver.on_reconnect(lambda: 1 / 0)
    receiver.on_reconnect(lambda: regained.append(True))
    for number in range(50):
        await receiver.subscribe(f"ev.order.{number}", lambda message: heard.append(message.data))
    stopped = await receiver.subscribe("ev.order.0", lambda message: heard.append(b"stopped"))

    nats.kill()
    assert isinstance(sender, NatsBroker)
    assert isinstance(receiver, NatsBroker)
    await until(lambda: not sender.connected and not receiver.connected)
    for attempt in (
        sender.publish("ev.order.1", b"into the void"),
        sender.request("cmd.7", b"", 5.0),
        sender.subscribe("a", lambda message: None),
        sender.confirm(),
    ):
        with pytest.raises(BrokerUnavailable):
            await attempt
    await stopped.stop()

    nats.start()
    await until(lambda: sender.connected and regained == [True])
    assert lost == [True]
    for number in range(50):
        await sender.publish(f"ev.order.{number}", b"%d" % number)
    await until(lambda: len(heard) == 50)
    assert heard == [b"%d" % number for number in range(50)]


async def test_a_request_under_way_when_the_server_dies_is_told_so(nats: Nats, connect_nats: Connect) -> None:
    asker, answerer = await connect_nats(), await connect_nats()
    asked: list[Received] = []
    await answerer.subscribe("cmd.7", asked.append)
    question = asyncio.ensure_future(asker.request("cmd.7", b"", 30.0))
    await until(lambda: len(asked) == 1)
    nats.kill()
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(question, 5.0)
    nats.start()


async def test_a_server_that_hangs_is_given_up_and_regained(nats: Nats, connect_nats: Connect) -> None:
    broker = await connect_nats()
    assert isinstance(broker, NatsBroker)
    regained: list[bool] = []
    broker.on_reconnect(lambda: regained.append(True))
    nats.pause()
    try:
        with pytest.raises(BrokerUnavailable):
            await broker.confirm(0.2)
        await until(lambda: not broker.connected, within_s=12.0)
    finally:
        nats.resume()
    await until(lambda: regained == [True], within_s=10.0)
    await broker.confirm()


async def test_publishing_to_a_server_that_does_not_read_is_refused_rather_than_buffered(
    nats: Nats, connect_nats: Connect
) -> None:
    broker = await connect_nats()
    nats.pause()
    try:
        with pytest.raises(BrokerUnavailable):
            for _ in range(1_000):
                await broker.publish("a", b"x" * MAX_MESSAGE_BYTES)
    finally:
        nats.resume()


async def test_a_crowd_that_publishes_to_a_server_that_does_not_read_is_refused_at_once(
    nats: Nats, connect_nats: Connect
) -> None:
    broker = await connect_nats()
    assert isinstance(broker, NatsBroker)
    assert broker._link is not None
    nats.pause()
    try:
        crowd = [asyncio.ensure_future(broker.request("a", b"x" * MAX_MESSAGE_BYTES, 1.0)) for _ in range(100)]
        await asyncio.sleep(0.1)
        assert broker._link.unsent_bytes <= 17 * 1024 * 1024
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {BrokerUnavailable, RequestTimeout}
    finally:
        nats.resume()


async def test_a_ping_leaves_after_what_it_asks_about() -> None:
    # nats-py writes a PING straight to the socket, past the commands that wait for its flusher: its PONG then says
    # nothing about them, and a subscriber that was told "done" misses what is published next.
    lines: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload": 1048576, "headers": true}\r\n')
        while line := await reader.readline():
            lines.append(line.split()[0])
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
            if line.startswith(b"PUB"):
                await reader.readline()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    broker = await NatsBroker(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}").start()
    lines.clear()
    subscription = await broker.subscribe("a", lambda message: None)
    await broker.publish("b", b"")
    await broker.confirm()
    await subscription.stop()
    assert lines == [b"SUB", b"PING", b"PUB", b"PING", b"UNSUB", b"PING"]
    await broker.close()
    server.close()
    await server.wait_closed()


async def test_a_request_to_a_killed_answerer_times_out_or_finds_nobody(nats: Nats, connect_nats: Connect) -> None:
    broker = await connect_nats()
    answerer = textwrap.dedent(f"""
        import asyncio
        from storage.broker import NatsBroker

        async def main():
            broker = await NatsBroker({nats.url!r}).start()
            await broker.subscribe("cmd.7", lambda message: print("asked", flush=True))
            print("ready", flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """)
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", answerer], cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        question = asyncio.ensure_future(broker.request("cmd.7", b"", 0.5))
        assert await asyncio.to_thread(process.stdout.readline) == b"asked\n"
        process.send_signal(signal.SIGKILL)
        with pytest.raises(RequestTimeout):
            await question
        began = time.monotonic()
        with pytest.raises(NoResponders):
            await broker.request("cmd.7", b"", 5.0)
        assert time.monotonic() - began < 1.0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_without_a_server_starting_fails_in_time_and_leaves_nothing_behind(nats: Nats) -> None:
    nats.stop()
    tasks = asyncio.all_tasks()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        await NatsBroker(nats.url).start(timeout_s=0.3)
    assert time.monotonic() - began < 2.0
    assert asyncio.all_tasks() == tasks


async def test_closing_leaves_no_task_and_no_open_socket(nats: Nats, connect_nats: Connect) -> None:
    tasks = asyncio.all_tasks()
    broker = await NatsBroker(nats.url).start()
    await broker.subscribe("a", lambda message: None)
    await broker.publish("a", b"")
    await broker.close()
    assert asyncio.all_tasks() == tasks
    del broker
    gc.collect()


async def test_a_waiter_that_gives_up_does_not_end_the_connection(connect_nats: Connect) -> None:
    # nats-py sets the result of a cancelled future when the PONG comes, and its reader dies of that, for ever.
    broker = await connect_nats()
    assert isinstance(broker, NatsBroker)
    link = broker._link
    waiter = asyncio.ensure_future(broker.confirm())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await broker.confirm()
    assert broker._link is link
