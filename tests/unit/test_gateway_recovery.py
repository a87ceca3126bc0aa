"""Never a hole, never a double: connections and hub on a fake transport, with everything going wrong at random."""

import asyncio
import random
from typing import Any

import msgspec
import pytest

from domain.commands import Publication
from gateway.codes import Disconnect
from gateway.connection import Connection
from gateway.progress import NOTHING, Taken
from gateway.settings import GatewaySettings
from gateway.switchboard import Switchboard
from tests.support.fake_platform import CountingMetrics, FakePlatform, SystemClock

USER = "0190a0a0-0000-7000-8000-00000000000a"
CHAT = "conversation:0190a0a0-0000-7000-8000-0000000000c1"


class FakeTransport:
    """Keeps what was written, while it lets anything be written."""

    def __init__(self) -> None:
        self.writable = True
        self.frames: list[bytes] = []
        self.closed: int | None = None
        self.reading = True

    def taken(self) -> Taken:
        return NOTHING

    def write(self, frame: bytes) -> None:
        assert self.writable
        self.frames.append(frame)

    def close(self, code: int, reason: str) -> None:
        self.closed = code

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    @property
    def replies(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for frame in self.frames for line in frame.split(b"\n")]

    @property
    def offsets(self) -> list[int]:
        """Offsets of all publications in the order the client sees them, recovered ones included."""
        seen = []
        for reply in self.replies:
            seen += [pub["offset"] for pub in reply.get("subscribe", {}).get("publications", [])]
            if "pub" in reply.get("push", {}) and "offset" in reply["push"]["pub"]:
                seen.append(reply["push"]["pub"]["offset"])
        return seen


class Rig:
    def __init__(self, platform: FakePlatform | None = None, **settings: Any) -> None:
        p = self.platform = platform or FakePlatform()
        options = {"tick_s": 0.01, "linger_s": 0.05} | settings
        self.metrics = CountingMetrics()
        self.board = Switchboard(
            GatewaySettings(**options), p, p.broker, p, p, p, SystemClock(), lambda: "client", self.metrics
        )  # type: ignore[arg-type]

    async def __aenter__(self) -> "Rig":
        await self.board.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in list(self.board.peers):
            peer.disconnect(Disconnect(3001, "over"))
        await self.board.stop()

    async def connected(self) -> tuple[Connection, FakeTransport]:
        transport = FakeTransport()
        connection = Connection(self.board, transport)
        say(connection, {"id": 1, "connect": {"token": self.platform.token(USER, "sid")}})
        await until(lambda: transport.replies)
        return connection, transport

    async def following(self, **request: Any) -> tuple[Connection, FakeTransport]:
        connection, transport = await self.connected()
        say(connection, {"id": 2, "subscribe": {"channel": CHAT, **request}})
        await until(lambda: any(reply.get("id") == 2 for reply in transport.replies))
        return connection, transport


def say(connection: Connection, command: dict[str, Any]) -> None:
    connection.received(msgspec.json.encode(command))


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def numbered(*numbers: int) -> list[dict[str, Any]]:
    return [{"type": "message.posted", "n": n} for n in numbers]


def upto(n: int) -> list[int]:
    return list(range(1, n + 1))


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_goes_wrong_each_reader_sees_every_event_once_and_in_order(seed: int) -> None:
    """Events are lost, repeated and reordered on the way; readers stall, come and go; the store is slow and down."""
    chance = random.Random(seed)
    platform = FakePlatform()
    platform.remembered = chance.choice([0, 3, 60])
    platform.create(CHAT, USER)
    async with Rig(
        platform, outbound_bytes=6_000, outbound_frames=64, tail_events=chance.choice([1, 5, 50]), page_events=7
    ) as rig:
        readers = [await rig.following(recover=True, epoch="e1", offset=0) for _ in range(4)]
        for _ in range(300):
            match chance.randrange(12):
                case 0:
                    platform.broker.cut()
                case 1:
                    platform.broker.heal()
                case 2:
                    _, transport = chance.choice(readers)
                    transport.writable = False
                case 3:
                    connection, transport = chance.choice(readers)
                    transport.writable = True
                    connection.flush()
                case 4:
                    platform.store_down = chance.random() < 0.3
                case 5:
                    platform.read_delay_s = chance.choice([0, 0.003])
                case 6 if platform.streams[CHAT].events:
                    events = platform.streams[CHAT].events
                    again = sorted(chance.choices(range(1, len(events) + 1), k=3))
                    await platform.deliver(CHAT, *(Publication(n, events[n - 1]) for n in again))
                case 7 if not platform.broker.down and not platform.store_down and len(readers) < 12:
                    head = len(platform.streams[CHAT].events)
                    start = chance.randint(0, head)
                    connection, transport = await rig.following(recover=True, epoch="e1", offset=start)
                    transport.start = start  # type: ignore[attr-defined]
                    readers.append((connection, transport))
                case _:
                    publish = chance.random() > 0.1
                    await platform.post(CHAT, *numbered(*range(chance.randint(1, 9))), publish=publish)
            if chance.random() < 0.7:
                await asyncio.sleep(chance.choice([0, 0.001]))
        platform.store_down, platform.read_delay_s = False, 0
        platform.broker.heal()
        for connection, transport in readers:
            transport.writable = True
            connection.flush()
        total = await platform.post(CHAT, *numbered(0))
        for _, transport in readers:
            expected = list(range(getattr(transport, "start", 0) + 1, total + 1))
            await until(lambda transport=transport, expected=expected: len(transport.offsets) >= len(expected))
            assert transport.offsets == expected
            assert transport.closed is None


async def test_the_second_of_a_channel_is_served_from_the_tail_without_asking_the_store() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform) as rig:
        await rig.following()
        await platform.post(CHAT, *numbered(1, 2, 3, 4))
        await asyncio.sleep(0)
        for _ in range(5):
            _, transport = await rig.following(recover=True, epoch="e1", offset=1)
            assert transport.offsets == [2, 3, 4]
        assert platform.reads == 0
        assert len(platform.broker.handlers[f"ev.conversation.{CHAT[13:]}"]) == 1


async def test_what_the_streams_owner_still_knows_is_not_read_from_the_log() -> None:
    """All come back at once to a gateway that has just begun: it has heard nothing yet itself."""
    platform = FakePlatform()
    platform.remembered = 60
    platform.create(CHAT, USER)
    await platform.post(CHAT, *numbered(*range(100)))
    async with Rig(platform) as rig:
        _, transport = await rig.following(recover=True, epoch="e1", offset=40)
        assert transport.offsets == list(range(41, 101))
        await platform.post(CHAT, *numbered(100))
        for _ in range(3):
            _, transport = await rig.following(recover=True, epoch="e1", offset=50)
            assert transport.offsets == list(range(51, 102))
        assert platform.reads == 0
        _, transport = await rig.following(recover=True, epoch="e1", offset=10)
        assert transport.offsets == list(range(11, 102))
        assert platform.reads == 1


async def test_the_owners_tail_joins_what_was_heard_while_it_was_asked() -> None:
    platform = FakePlatform()
    platform.remembered = 5
    platform.create(CHAT, USER)
    await platform.post(CHAT, *numbered(1, 2, 3))
    platform.delay_s = 0.02
    async with Rig(platform) as rig:
        connection, transport = await rig.connected()
        say(connection, {"id": 2, "subscribe": {"channel": CHAT, "recover": True, "epoch": "e1", "offset": 1}})
        await until(lambda: rig.board.hub.channels and rig.board.hub.channels[0].subscription)
        await platform.post(CHAT, *numbered(4, 5))
        await until(lambda: transport.offsets == [2, 3, 4, 5])
        assert [event.offset for event in rig.board.hub.channels[0].tail] == [2, 3, 4, 5]
        assert platform.reads == 0


async def test_nothing_from_before_a_deletion_is_kept_in_memory() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform) as rig:
        await rig.following()
        await platform.post(CHAT, *numbered(1, 2), {"type": "message.deleted", "message_id": "m"}, *numbered(3))
        (channel,) = rig.board.hub.channels
        await until(lambda: channel.head == 4)
        assert [event.offset for event in channel.tail] == [3, 4]
        await platform.deliver(CHAT, Publication(3, platform.streams[CHAT].events[2]))
        assert [event.offset for event in channel.tail] == [3, 4]


async def test_an_event_published_while_the_owner_is_asked_is_not_missed() -> None:
    """The race: the gateway asks where the stream stands, an event is committed after the answer was made and published
    before the answer arrives. Whoever follows the channel only after the answer would never hear of it."""
    platform = FakePlatform()
    platform.create(CHAT, USER)
    platform.delay_s = 0.02
    async with Rig(platform) as rig:
        connection, transport = await rig.connected()
        original = platform._answer

        def answer_then_event(stream: Any, query: Any) -> Any:
            answer = original(stream, query)
            asyncio.get_running_loop().call_soon(asyncio.ensure_future, platform.post(CHAT, *numbered(1)))
            return answer

        platform._answer = answer_then_event  # type: ignore[method-assign]
        say(connection, {"id": 2, "subscribe": {"channel": CHAT, "recover": True, "epoch": "e1"}})
        await until(lambda: transport.offsets == [1])


async def test_who_is_expelled_between_the_answer_and_the_first_page_gets_nothing_from_after_it() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    await platform.post(CHAT, *numbered(1))
    platform.read_delay_s = 0.02
    async with Rig(platform) as rig:
        connection, transport = await rig.connected()
        say(connection, {"id": 2, "subscribe": {"channel": CHAT, "recover": True, "epoch": "e1"}})
        await until(lambda: platform.reads)
        await platform.leave(CHAT, USER)
        await platform.post(CHAT, *numbered(3))
        await until(lambda: any("unsubscribe" in reply.get("push", {}) for reply in transport.replies))
        await asyncio.sleep(0.05)
        assert transport.offsets == [1, 2]


async def test_rows_that_a_replica_does_not_show_yet_are_waited_for() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    await platform.post(CHAT, *numbered(1, 2, 3))
    platform.hidden_rows = 2
    async with Rig(platform) as rig:
        _, transport = await rig.following(recover=True, epoch="e1", offset=0)
        assert transport.offsets == [1]
        await platform.post(CHAT, *numbered(4))
        await asyncio.sleep(0.05)
        assert transport.offsets == upto(len(transport.offsets))
        platform.hidden_rows = 0
        await until(lambda: transport.offsets == [1, 2, 3, 4])


async def test_a_store_that_never_shows_what_is_committed_sends_the_client_elsewhere() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    await platform.post(CHAT, *numbered(1, 2, 3))
    platform.hidden_rows = 3
    async with Rig(platform, recovery_patience_s=0.1) as rig:
        _, transport = await rig.following(recover=True, epoch="e1", offset=0)
        await until(lambda: transport.closed == 3010)


async def test_a_reader_that_does_not_read_holds_a_bounded_queue_and_delays_nobody() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, outbound_bytes=50_000) as rig:
        stuck_connection, stuck = await rig.following()
        _, quick = await rig.following()
        stuck.writable = False
        for n in range(2_000):
            await platform.post(CHAT, {"type": "message.posted", "text": "x" * 200, "n": n})
            if n % 50 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: quick.offsets == upto(2_000))
        assert stuck.offsets == []
        assert stuck_connection._out.size <= 50_000
        stuck.writable = True
        stuck_connection.flush()
        await until(lambda: stuck.offsets == upto(2_000))
        assert stuck.closed is None


async def test_replies_that_nobody_reads_end_the_session_as_slow() -> None:
    async with Rig(outbound_frames=16, outbound_bytes=10_000) as rig:
        connection, transport = await rig.connected()
        transport.writable = False
        for n in range(20):
            say(connection, {"id": n + 2, "ping": {}})
        assert transport.closed == 3008


async def test_reading_pauses_while_too_much_is_waiting() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    platform.delay_s = 0.01
    async with Rig(platform, max_in_flight=4) as rig:
        connection, transport = await rig.connected()
        for n in range(8):
            data = {"conversation_id": CHAT[13:], "id": f"0190a0a0-0000-7000-8000-{n:012x}", "text": "x"}
            say(connection, {"id": n + 2, "rpc": {"method": "message.send", "data": data}})
        assert not transport.reading
        await until(lambda: len(transport.replies) == 9)
        assert transport.reading
        sent = [reply["rpc"]["data"]["offset"] for reply in transport.replies if "rpc" in reply]
        assert sent == upto(8)


async def test_who_left_long_ago_and_came_back_recovers_across_it() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    await platform.leave(CHAT, USER)
    platform.streams[CHAT].members.add(USER)
    await platform.post(CHAT, {"type": "member.joined", "user_id": USER}, *numbered(1))
    async with Rig(platform) as rig:
        _, transport = await rig.following(recover=True, epoch="e1", offset=0)
        await platform.post(CHAT, *numbered(2))
        await until(lambda: transport.offsets == [1, 2, 3, 4])
        assert not [reply for reply in transport.replies if "unsubscribe" in reply.get("push", {})]


async def test_who_is_expelled_while_catching_up_gets_nothing_from_after_it() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, outbound_bytes=4_000, outbound_frames=40) as rig:
        connection, transport = await rig.following()
        transport.writable = False
        await platform.post(CHAT, *numbered(*range(100)))
        await platform.leave(CHAT, USER)
        await platform.post(CHAT, *numbered(*range(100)))
        await asyncio.sleep(0.01)
        transport.writable = True
        connection.flush()
        await until(lambda: any("unsubscribe" in reply.get("push", {}) for reply in transport.replies))
        await asyncio.sleep(0.02)
        assert transport.offsets == upto(101)
        (end,) = [reply["push"]["unsubscribe"] for reply in transport.replies if "unsubscribe" in reply.get("push", {})]
        assert end["code"] == 2510


async def test_channels_that_nobody_follows_any_more_are_let_go() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform) as rig:
        connection, _ = await rig.following()
        handlers = platform.broker.handlers[f"ev.conversation.{CHAT[13:]}"]
        assert len(handlers) == 1
        connection.lost()
        await until(lambda: not handlers)
        assert rig.board.hub.channels == []
        assert not rig.board.peers


async def test_a_failed_subscription_leaves_nothing_behind() -> None:
    async with Rig() as rig:
        connection, transport = await rig.connected()
        for n in range(3):
            say(connection, {"id": n + 2, "subscribe": {"channel": CHAT}})
        await until(lambda: len(transport.replies) == 4)
        await until(lambda: rig.board.hub.channels == [])
        rig.platform.broker.cut()
        say(connection, {"id": 9, "subscribe": {"channel": CHAT}})
        await until(lambda: transport.replies[-1].get("id") == 9)
        assert transport.replies[-1]["error"] == {"code": 503, "message": "unavailable", "temporary": True}
        assert rig.board.hub.channels == []


async def test_a_client_that_goes_while_its_token_is_checked_is_forgotten() -> None:
    async with Rig() as rig:
        connection = Connection(rig.board, FakeTransport())
        say(connection, {"id": 1, "connect": {"token": rig.platform.token(USER, "sid")}})
        await asyncio.sleep(0)
        connection.lost()
        await asyncio.sleep(0.05)
        assert rig.board.hub._users == {}
        assert rig.board._by_sid == {}


async def test_line_ends_between_an_events_tokens_do_not_break_the_protocols_lines() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER).events.append(b'{\n  "text": "a\\nb"\r\n}')
    async with Rig(platform) as rig:
        _, transport = await rig.following(recover=True, epoch="e1", offset=0)
        await platform.deliver(CHAT, Publication(2, b'{\n  "text": "c"\n}'))
        await until(lambda: transport.offsets == [1, 2])
        assert transport.replies[-1]["push"]["pub"]["data"] == {"text": "c"}


async def test_a_session_revoked_while_it_connects_does_not_slip_in() -> None:
    async with Rig() as rig:
        transport = FakeTransport()
        connection = Connection(rig.board, transport)
        say(connection, {"id": 1, "connect": {"token": rig.platform.token(USER, "sid")}})
        await rig.platform.broker.publish("ctl.revoked", b"sid")
        await until(lambda: transport.closed)
        assert transport.closed == 4500
        assert not transport.frames


async def test_nobody_is_shown_what_the_owner_has_not_spoken_of() -> None:
    """A commit stands in the store before its owner hears of it: who saw it would come back ahead of the head."""

    class Ahead:
        async def read(self, stream: str, after: int, limit: int, max_bytes: int = 0) -> list[tuple[int, bytes]]:
            return [(offset, b"{}") for offset in range(after + 1, 6)]

    platform = FakePlatform()
    rig = Rig(platform)
    hub = rig.board.hub
    hub._reader = Ahead()  # type: ignore[assignment]
    async with rig:
        channel = await hub.follow(CHAT)
        channel.head = 3
        assert [event.offset for event in await hub.page(channel, 0, 100, 10_000)] == [1, 2, 3]
        hub.unfollow(channel)
