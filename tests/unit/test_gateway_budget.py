"""What one client, and one user's clients together, may ask of a gateway."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from domain.ports import Identity
from gateway import codes
from gateway.budget import BURST_S, Budget, Share
from gateway.session import Close, Session
from gateway.settings import GatewaySettings, budgeted
from tests.support.fake_platform import FakePlatform
from tests.unit.test_gateway_recovery import CHAT, USER, Rig, numbered, say, until
from tests.unit.test_gateway_session import NOW_MS, frame, replies


@given(st.floats(1, 100), st.lists(st.tuples(st.floats(0, 2), st.floats(0, 50)), max_size=100))
def test_nobody_gets_more_than_the_rate_a_burst_and_one_debt(rate: float, asked: list[tuple[float, float]]) -> None:
    budget, now_s, granted = Budget(rate, 0.0), 0.0, 0.0
    for pause_s, amount in asked:
        now_s += pause_s
        granted += amount if budget.spend(amount, now_s) else 0.0
        assert granted <= rate * (now_s + BURST_S) + 50 + 1e-6


def test_a_rate_of_zero_is_no_limit() -> None:
    budget = Budget(0, 0.0)
    assert all(budget.spend(10**9, 0.0) for _ in range(100))
    assert not budget.abused


def opened(settings: GatewaySettings, share: Share[Any] | None = None) -> Session:
    session = Session(settings, "client", 0.0)
    (verify,) = session.receive(frame({"id": 1, "connect": {"token": "t"}}), 0.0)
    session.verified(verify, Identity(USER, "sid", NOW_MS + 900_000), 0.0, NOW_MS, share)
    return session


def answers(session: Session, count: int, now_s: float = 0.0) -> list[int | None]:
    """The error codes of so many pings in frames of their own."""
    found = []
    for n in range(count):
        effects = session.receive(frame({"id": n + 2, "ping": {}}), now_s)
        found += [reply.get("error", {}).get("code") for reply in replies(effects)]
    return found


def test_bytes_are_a_budget_like_commands() -> None:
    session = opened(GatewaySettings(bytes_per_s=100))
    big = frame({"id": 2, "rpc": {"method": "none", "data": "x" * 500}})
    assert [reply["error"]["code"] for reply in replies(session.receive(big, 0.0))] == [104]
    assert answers(session, 1) == [111]
    assert answers(session, 1, 60.0) == [None]
    for _ in range(20):
        effects = session.receive(big, 60.0)
    assert effects == [] or effects == [Close(codes.PROTOCOL_ABUSE)]
    assert session.closed


def test_the_devices_of_one_user_share_a_budget_and_none_is_closed_for_another() -> None:
    settings = GatewaySettings(user_commands_per_s=1)
    share: Share[Any] = Share(settings, 0.0)
    one, other = opened(settings, share), opened(settings, share)
    assert answers(one, 4) == [None] * 4
    assert answers(other, 200) == [111] * 200
    assert not other.closed
    assert answers(other, 1, 1.0) == [None]


async def test_the_subscriptions_of_one_user_are_bounded_together() -> None:
    platform = FakePlatform()
    names = [f"conversation:0190a0a0-0000-7000-8000-0000000000{n:02x}" for n in range(4)]
    for name in names:
        platform.create(name, USER)
    async with Rig(platform, max_user_subscriptions=3) as rig:
        first, one = await rig.connected()
        second, other = await rig.connected()
        for n, name in enumerate(names[:2]):
            say(first, {"id": n + 2, "subscribe": {"channel": name}})
        await until(lambda: len(one.replies) == 3)
        for n, name in enumerate(names[2:]):
            say(second, {"id": n + 2, "subscribe": {"channel": name}})
        await until(lambda: len(other.replies) == 3)
        assert sorted(reply["error"]["code"] for reply in other.replies if "error" in reply) == [106]
        first.lost()
        say(second, {"id": 9, "subscribe": {"channel": names[0]}})
        await until(lambda: len(other.replies) == 4)
        assert "subscribe" in other.replies[-1]


async def test_one_connection_too_many_closes_the_users_oldest() -> None:
    async with Rig(max_user_connections=2) as rig:
        transports = [(await rig.connected())[1] for _ in range(4)]
        assert [transport.closed for transport in transports] == [3504, 3504, None, None]
        assert len(rig.board._shares[USER].peers) == 2
    assert rig.board._shares == {}


def test_what_is_shipped_has_budgets() -> None:
    settings = budgeted(GatewaySettings())
    assert all((settings.commands_per_s, settings.bytes_per_s, settings.user_commands_per_s, settings.user_bytes_per_s))


async def test_who_does_not_keep_up_is_told_once_and_again_when_it_has_everything() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, outbound_bytes=20_000) as rig:
        connection, transport = await rig.following()
        transport.writable = False
        for n in range(300):
            await platform.post(CHAT, {"type": "message.posted", "text": "x" * 100, "n": n})
        transport.writable = True
        connection.flush()
        await until(lambda: transport.offsets == list(range(1, 301)))
        told = [reply["push"]["pub"]["data"] for reply in transport.replies if _told(reply)]
        assert [data["type"] for data in told] == ["session.lagging", "session.caught_up"]


def _told(reply: dict[str, Any]) -> bool:
    push = reply.get("push", {})
    return bool(push.get("channel") == f"user:{USER}" and "pub" in push)


async def test_of_state_that_waits_the_latest_is_sent_once_per_person() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform) as rig:
        connection, transport = await rig.following()
        transport.writable = False
        for n in range(1_000):
            await platform.ephemeral(CHAT, {"type": "typing", "by": f"user-{n % 3}", "on": n % 2 == 0, "n": n})
        await platform.post(CHAT, *numbered(1))
        await until(lambda: len(connection._out) == 4)
        transport.writable = True
        connection.flush()
        pushed = [reply["push"]["pub"]["data"] for reply in transport.replies if "pub" in reply.get("push", {})]
        assert sorted(data["n"] for data in pushed if data["type"] == "typing") == [997, 998, 999]
        assert transport.offsets == [1]


async def test_of_hints_that_say_where_something_stands_the_latest_waits_and_of_others_all_do() -> None:
    """Whoever does not read for long would else be cut off by hints alone, in the busiest conversations first."""
    platform = FakePlatform()
    async with Rig(platform, outbound_frames=64, outbound_bytes=100_000) as rig:
        connection, transport = await rig.connected()
        transport.writable = False
        for n in range(200):
            await platform.hint(USER, {"type": "conversation.activity", "conversation_id": f"c{n % 3}", "offset": n})
        for n in range(5):
            await platform.hint(USER, {"type": "offer", "order_id": "o", "n": n})
        await until(lambda: len(connection._out) == 8)
        transport.writable = True
        connection.flush()
        told = [reply["push"]["pub"]["data"] for reply in transport.replies if _told(reply)]
        assert [data["offset"] for data in told if "offset" in data] == [197, 198, 199]
        assert [data["n"] for data in told if "n" in data] == [0, 1, 2, 3, 4]
        assert transport.closed is None
