"""Who is there, as connections of a gateway ask and are told: on a fake transport, with a store in memory."""

import uuid
from typing import Any

import pytest

from domain.presence import Move, Present
from gateway.attendance import Moved
from gateway.codec import JSON
from gateway.codes import Disconnect
from gateway.connection import Connection
from gateway.presence import PresenceSettings
from gateway.protobuf import PROTOBUF
from gateway.settings import GatewaySettings
from gateway.switchboard import Switchboard
from storage.memory_presence import MemoryPresence
from tests.support.fake_platform import CountingMetrics, FakePlatform, SystemClock
from tests.unit.test_gateway_recovery import CHAT, USER, FakeTransport, say, until

OTHER = "0190a0a0-0000-7000-8000-00000000000b"
SOON = PresenceSettings(flush_s=0.01, hold_s=0.05, max_listed=3)


class Rig:
    """A gateway, with a store for presence unless it is told to have none."""

    def __init__(self, *, store: bool = True, **settings: Any) -> None:
        p = self.platform = FakePlatform()
        p.create(CHAT, USER, OTHER)
        clock = SystemClock()
        self.metrics = CountingMetrics()
        self.store = MemoryPresence(clock.now_ms)
        self.board = Switchboard(
            GatewaySettings(tick_s=0.01, presence=SOON, **settings), p, p.broker, p, p, p, clock,  # type: ignore[arg-type]
            lambda: str(uuid.uuid4()), self.metrics, presence=self.store if store else None,
        )  # fmt: skip

    async def __aenter__(self) -> "Rig":
        await self.board.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in list(self.board.peers):
            peer.disconnect(Disconnect(3001, "over"))
        await self.board.stop()

    async def connected(self, user: str = USER, device: str = "phone") -> tuple[Connection, FakeTransport]:
        transport = FakeTransport()
        connection = Connection(self.board, transport)
        say(connection, {"id": 1, "connect": {"token": self.platform.token(user, device)}})
        await until(lambda: transport.replies)
        return connection, transport

    async def following(
        self, user: str = USER, device: str = "phone", **request: Any
    ) -> tuple[Connection, FakeTransport]:
        connection, transport = await self.connected(user, device)
        await ask(connection, transport, {"id": 2, "subscribe": {"channel": CHAT, **request}})
        return connection, transport


async def ask(connection: Connection, transport: FakeTransport, command: dict[str, Any]) -> dict[str, Any]:
    say(connection, command)
    await until(lambda: any(reply.get("id") == command["id"] for reply in transport.replies))
    return next(reply for reply in transport.replies if reply.get("id") == command["id"])


def moves(transport: FakeTransport) -> list[tuple[str, str]]:
    """Who came and went, by the pushes: the kind and the device."""
    pushes = [reply["push"] for reply in transport.replies if "push" in reply]
    return [
        (kind, push[kind]["info"]["conn_info"]["device"])
        for push in pushes
        for kind in ("join", "leave")
        if kind in push
    ]


async def test_the_answer_names_each_client_with_its_user_and_device() -> None:
    async with Rig() as rig:
        connection, transport = await rig.following()
        reply = await ask(connection, transport, {"id": 3, "presence": {"channel": CHAT}})
        ((client, info),) = reply["presence"]["presence"].items()
        assert info == {"user": USER, "client": client, "conn_info": {"device": "phone"}}
        assert client == transport.replies[0]["connect"]["client"]
        stats = await ask(connection, transport, {"id": 4, "presence_stats": {"channel": CHAT}})
        assert stats["presence_stats"] == {"num_clients": 1, "num_users": 1}


async def test_of_a_channel_with_too_many_only_the_numbers_can_be_had() -> None:
    async with Rig() as rig:
        everybody = [await rig.following(device=f"device-{n}") for n in range(4)]
        connection, transport = everybody[0]
        reply = await ask(connection, transport, {"id": 3, "presence": {"channel": CHAT}})
        assert reply["error"]["code"] == 106
        stats = await ask(connection, transport, {"id": 4, "presence_stats": {"channel": CHAT}})
        assert stats["presence_stats"] == {"num_clients": 4, "num_users": 1}


async def test_a_gateway_without_a_store_offers_no_presence() -> None:
    async with Rig(store=False) as rig:
        connection, transport = await rig.following(join_leave=True)
        for number, command in enumerate(("presence", "presence_stats"), 3):
            assert (await ask(connection, transport, {"id": number, command: {"channel": CHAT}}))["error"][
                "code"
            ] == 108
        reply = await ask(connection, transport, {"id": 5, "rpc": {"method": "presence.get", "data": {"user_ids": []}}})
        assert reply["error"]["code"] == 108


async def test_a_client_that_does_not_read_is_told_the_latest_of_each_client() -> None:
    async with Rig() as rig:
        _, slow = await rig.following(join_leave=True)
        await until(lambda: moves(slow) == [("join", "phone")])
        slow.writable = False
        other, transport = await rig.following(OTHER, "tablet", join_leave=True)
        await until(lambda: moves(transport) == [("join", "tablet")])
        other.disconnect(Disconnect(3001, "over"))
        _, third = await rig.following(OTHER, "watch", join_leave=True)
        await until(lambda: ("leave", "tablet") in moves(third))
        slow.writable = True
        (peer,) = [peer for peer in rig.board.peers if peer.actor.session_id == "phone"]
        peer.flush()
        assert sorted(moves(slow)[1:]) == [("join", "watch"), ("leave", "tablet")]


async def test_comings_and_goings_for_which_there_is_no_room_are_dropped_and_counted() -> None:
    async with Rig(outbound_frames=4) as rig:
        _, slow = await rig.following(join_leave=True)
        await until(lambda: moves(slow))
        slow.writable = False
        for n in range(8):
            await rig.following(OTHER, f"device-{n}")
        await until(lambda: rig.metrics.counts["gateway_states_dropped"])
        assert slow.closed is None


async def test_whoever_is_closed_in_whatever_way_is_nowhere_any_more() -> None:
    async with Rig() as rig:
        lost, _ = await rig.following(device="lost")
        ended, _ = await rig.following(device="ended")
        revoked, _ = await rig.following(device="revoked")
        expelled, expelled_sees = await rig.following(OTHER, device="expelled")
        early = Connection(rig.board, FakeTransport())
        say(early, {"id": 1, "connect": {"token": rig.platform.token(USER, "early")}})
        early.lost()
        lost.lost()
        ended.disconnect(Disconnect(3001, "over"))
        await rig.platform.revoke("revoked")
        await rig.platform.leave(CHAT, OTHER)
        await until(lambda: any("unsubscribe" in reply.get("push", {}) for reply in expelled_sees.replies))
        await until(lambda: revoked not in rig.board.peers)
        assert rig.board.hub.here(CHAT) == ()
        assert [client.device for client in rig.board.hub.here(f"user:{OTHER}")] == ["expelled"]
        expelled.lost()
        assert list(rig.board.hub.peopled()) == []
        await until(lambda: not (rig.board.presence._changed or rig.board.presence._left))  # type: ignore[union-attr]
        heard = await rig.store.read([CHAT, f"user:{USER}", f"user:{OTHER}"])
        assert [each.said for each in heard] == [(), (), ()]
        assert [each.last_seen_ms is None for each in heard] == [True, False, False]


async def test_a_refreshed_connection_is_still_one_client() -> None:
    async with Rig() as rig:
        connection, transport = await rig.connected()
        first = rig.board.hub.here(f"user:{USER}")
        await ask(connection, transport, {"id": 3, "refresh": {"token": rig.platform.token(USER, "phone")}})
        assert rig.board.hub.here(f"user:{USER}") == first
        connection.lost()
        assert rig.board.hub.here(f"user:{USER}") == ()


@pytest.mark.parametrize("codec", [JSON, PROTOBUF], ids=["json", "protobuf"])
def test_a_coming_is_encoded_once_however_many_are_told(codec: Any) -> None:
    moved = Moved(CHAT, Move(True, Present("client", USER, "phone", 1)))
    assert moved.encoded(codec) is moved.encoded(codec)
    assert USER.encode() in moved.encoded(codec)
