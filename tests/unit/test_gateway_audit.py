"""What a gateway has missed it finds out, noticed or not, and asks no more than it must."""

import asyncio
from typing import Any

import msgspec
import pytest

from domain.commands import Compare, Query
from domain.errors import Code, Refusal
from gateway.connection import Connection
from tests.support.fake_platform import FakePlatform
from tests.unit.test_gateway_recovery import CHAT, USER, FakeTransport, Rig, numbered, say, until

ORDER = "order:0190a0a0-0000-7000-8000-0000000000d1"
OTHER = "0190a0a0-0000-7000-8000-0000000000d2"


def hints(transport: FakeTransport) -> list[str]:
    pushes = [reply["push"] for reply in transport.replies if "push" in reply]
    return [push["pub"]["data"]["type"] for push in pushes if push["channel"] == f"user:{USER}"]


def chat(number: int) -> str:
    """A conversation of the partition that the number stands for."""
    return f"conversation:0190a0a0-0000-7000-8000-{number:012x}"


async def following(rig: Rig, *channels: str) -> FakeTransport:
    connection, transport = await rig.connected()
    for number, channel in enumerate(channels):
        say(connection, {"id": number + 2, "subscribe": {"channel": channel}})
    await until(lambda: len(transport.replies) == len(channels) + 1)
    return transport


def asked(platform: FakePlatform, kind: type) -> list[Any]:
    return [request for request in platform.asked if isinstance(request, kind)]


async def test_the_loss_of_a_last_event_that_nobody_noticed_is_mended_and_counted() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, audit_s=0.05) as rig:
        _, transport = await rig.following()
        await platform.post(CHAT, *numbered(1))
        await until(lambda: transport.offsets == [1])
        await platform.post(CHAT, *numbered(2, 3), publish=False)
        await until(lambda: transport.offsets == [1, 2, 3])
        await until(lambda: rig.metrics.counts["gateway_silent_losses"] == 1)
        assert rig.metrics.counts["gateway_missed_events"] == 2


async def test_who_missed_what_a_newcomers_answer_spoke_of_is_given_it() -> None:
    """The newcomer's subscription raises the head; those who were here before must not be taken to have it all."""
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, audit_s=0.2) as rig:
        _, transport = await rig.following()
        await platform.post(CHAT, *numbered(1))
        await until(lambda: transport.offsets == [1])
        await platform.post(CHAT, *numbered(2, 3), publish=False)
        await following(rig, CHAT)
        await until(lambda: transport.offsets == [1, 2, 3])


async def test_without_the_comparison_nobody_would_know() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, audit_s=0) as rig:
        _, transport = await rig.following()
        await platform.post(CHAT, *numbered(1), publish=False)
        await asyncio.sleep(0.1)
        assert transport.offsets == []


async def test_a_loss_that_the_next_event_shows_is_counted_too_and_is_no_silent_one() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, audit_s=0) as rig:
        _, transport = await rig.following()
        await platform.post(CHAT, *numbered(1, 2), publish=False)
        await platform.post(CHAT, *numbered(3))
        await until(lambda: transport.offsets == [1, 2, 3])
        await until(lambda: rig.metrics.counts["gateway_missed_events"] == 2)
        assert rig.metrics.counts["gateway_silent_losses"] == 0


async def test_after_a_reconnect_each_partition_is_asked_once_however_many_of_its_streams_are_followed() -> None:
    platform = FakePlatform()
    names = [chat(1 + 1024 * n) for n in range(300)] + [chat(2)]
    for name in names:
        platform.create(name, USER)
    async with Rig(platform, audit_s=0) as rig:
        transport = await following(rig, *names)
        platform.asked.clear()
        platform.broker.cut()
        for name in names:
            await platform.post(name, *numbered(1))
        await asyncio.sleep(0)
        platform.broker.heal()
        await until(lambda: len(transport.offsets) == len(names))
        questions = asked(platform, Compare)
        assert sorted(len(question.streams) for question in questions) == [1, 44, 256]
        assert not asked(platform, Query)


async def test_what_an_owner_cannot_say_after_a_reconnect_is_asked_until_it_can() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, audit_s=0) as rig:
        _, transport = await rig.following()
        platform.broker.cut()
        await platform.post(CHAT, *numbered(1))
        await asyncio.sleep(0)
        platform.refuse = Refusal(Code.UNAVAILABLE)
        platform.broker.heal()
        await until(lambda: len(asked(platform, Compare)) >= 2)
        assert transport.offsets == []
        platform.refuse = None
        await until(lambda: transport.offsets == [1])


async def test_who_lost_an_order_while_nothing_was_heard_is_told_and_gets_nothing_more() -> None:
    platform = FakePlatform()
    platform.create(ORDER, USER)
    async with Rig(platform, audit_s=0) as rig:
        transport = await following(rig, ORDER)
        platform.broker.cut()
        platform.streams[ORDER].members.discard(USER)
        await platform.post(ORDER, {"type": "order.reopened"})
        await asyncio.sleep(0)
        platform.broker.heal()
        await until(lambda: any("unsubscribe" in reply.get("push", {}) for reply in transport.replies))
        await platform.post(ORDER, {"type": "order.quoted"})
        await asyncio.sleep(0.02)
        assert 2 not in transport.offsets


async def test_what_follows_on_a_reopened_order_waits_until_each_follower_has_been_asked_for() -> None:
    platform = FakePlatform()
    platform.create(ORDER, USER, OTHER)
    async with Rig(platform, audit_s=0) as rig:
        gone, stays = await following(rig, ORDER), FakeTransport()
        connection = Connection(rig.board, stays)
        say(connection, {"id": 1, "connect": {"token": platform.token(OTHER, "other sid")}})
        await until(lambda: stays.replies)
        say(connection, {"id": 2, "subscribe": {"channel": ORDER}})
        await until(lambda: len(stays.replies) == 2)
        platform.streams[ORDER].members.discard(USER)
        await platform.post(ORDER, {"type": "order.reopened"}, {"type": "order.quoted"}, {"type": "order.awarded"})
        await until(lambda: stays.offsets == [1, 2, 3])
        await until(lambda: any("unsubscribe" in reply.get("push", {}) for reply in gone.replies))
        assert gone.offsets == [1]


async def test_who_reads_of_a_reopened_order_later_is_asked_for_before_reading_on() -> None:
    """The gateway missed the event itself: the next one shows the hole, and pages are read."""
    platform = FakePlatform()
    platform.create(ORDER, USER)
    async with Rig(platform, audit_s=0) as rig:
        gone = await following(rig, ORDER)
        platform.streams[ORDER].members.discard(USER)
        await platform.post(ORDER, {"type": "order.reopened"}, {"type": "order.quoted"}, publish=False)
        await platform.post(ORDER, {"type": "order.awarded"})
        await until(lambda: any("unsubscribe" in reply.get("push", {}) for reply in gone.replies))
        assert gone.offsets == [1]


class LateAnswers(FakePlatform):
    """Its answers are true when they are given, and arrive after `arrive`."""

    def __init__(self) -> None:
        super().__init__()
        self.arrive = asyncio.Event()

    async def ask(self, request: Any, timeout_s: float = 5.0) -> Any:
        answer = await super().ask(request, timeout_s)
        await self.arrive.wait()
        return answer


@pytest.mark.parametrize(("stream", "leaves"), [(CHAT, "member.left"), (ORDER, "order.reopened")])
async def test_who_leaves_while_their_subscription_is_under_way_gets_nothing_after_that(
    stream: str, leaves: str
) -> None:
    platform = LateAnswers()
    platform.create(stream, USER)
    async with Rig(platform, audit_s=0) as rig:
        connection, transport = await rig.connected()
        say(connection, {"id": 2, "subscribe": {"channel": stream}})
        await until(lambda: platform.asked)
        platform.streams[stream].members.discard(USER)
        await platform.post(stream, {"type": leaves, "user_id": USER})
        await asyncio.sleep(0.01)
        platform.arrive.set()
        await until(lambda: any("unsubscribe" in reply.get("push", {}) for reply in transport.replies))
        await platform.post(stream, {"type": "message.posted"})
        await asyncio.sleep(0.01)
        assert transport.offsets == [1]


async def test_followers_of_an_order_in_which_nothing_has_happened_are_not_asked_for_one_by_one() -> None:
    platform = FakePlatform()
    platform.create(ORDER, USER)
    async with Rig(platform, audit_s=0) as rig:
        for _ in range(3):
            await following(rig, ORDER)
        platform.asked.clear()
        platform.broker.cut()
        platform.broker.heal()
        await until(lambda: platform.asked)
        await asyncio.sleep(0.02)
        assert [type(request) for request in platform.asked] == [Compare]


async def test_only_streams_that_somebody_follows_are_compared_each_once_in_a_period() -> None:
    platform = FakePlatform()
    for number in range(40):
        platform.create(chat(number), USER)
    async with Rig(platform, audit_s=0.4, linger_s=60) as rig:
        await following(rig, *(chat(number) for number in range(20)))
        connection, transport = await rig.connected()
        for number in range(20, 40):
            say(connection, {"id": number, "subscribe": {"channel": chat(number)}})
        await until(lambda: len(transport.replies) == 21)
        connection.lost()
        await asyncio.sleep(0.8)
        platform.asked.clear()
        await asyncio.sleep(0.8)
        questions = asked(platform, Compare)
        assert {name for question in questions for name in question.streams} == {chat(number) for number in range(20)}
        assert 20 <= len(questions) <= 60


async def test_clients_are_told_when_their_events_may_be_late_and_when_hints_may_be_gone() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, audit_s=0) as rig:
        _, transport = await rig.following()
        platform.broker.cut()
        await until(lambda: hints(transport) == ["service.degraded"])
        await platform.post(CHAT, *numbered(1))
        await asyncio.sleep(0)
        platform.broker.heal()
        await until(lambda: hints(transport) == ["service.degraded", "service.restored"])
        await until(lambda: transport.offsets == [1])
        assert transport.closed is None


async def test_an_answer_from_a_later_owner_silences_the_earlier_one() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, audit_s=0.02) as rig:
        _, transport = await rig.following()
        platform.owner = 9
        await until(lambda: len(asked(platform, Compare)) > 1)
        await platform.ephemeral(CHAT, {"type": "typing", "by": "stale"}, owner=8)
        await platform.ephemeral(CHAT, {"type": "typing", "by": "owner"}, owner=9)
        await until(lambda: "typing" in str(transport.replies))
        shown = msgspec.json.encode(transport.replies)
        assert b"owner" in shown
        assert b"stale" not in shown
