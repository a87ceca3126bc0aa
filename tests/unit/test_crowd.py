"""The devices that chaos is judged by behave as the SDKs do where it decides what they are shown."""

from typing import Any

import msgspec
import pytest

from benchmarks.load.sockets import ChatSocket, SocketFailed
from tests.support.crowd import Crowd, Device, Line
from tests.support.oracle import judge

ROOM = "conversation:0190a0a0-0000-7000-8000-000000000005"


class FakeSocket:
    """Takes what is sent, and says what it is told to."""

    def __init__(self) -> None:
        self.traffic: Any = None
        self.pings = 0
        self.sent: list[dict[str, Any]] = []
        self.closed = False

    def send(self, frame: bytes) -> None:
        self.sent.append(msgspec.json.decode(frame))

    def close(self) -> None:
        self.closed = True

    def say(self, line: dict[str, Any], now_s: float = 0.0) -> None:
        if self.traffic is None:
            return
        encoded = msgspec.json.encode(line)
        if "id" in line:
            self.traffic.replied(line["id"], encoded, now_s)
        else:
            self.traffic.pushed(encoded, now_s)


def joined(offset: int) -> dict[str, Any]:
    return {"data": {"type": "member.joined"}, "offset": offset}


def subscribed(number: int, offset: int, *publications: int) -> dict[str, Any]:
    page = [joined(at) for at in publications]
    return {"id": number, "subscribe": {"epoch": "e", "offset": offset, "recovered": True, "publications": page}}


def connect(device: Device) -> FakeSocket:
    socket = FakeSocket()
    device._begin(socket)  # type: ignore[arg-type]
    return socket


async def test_who_gets_no_answer_to_a_subscription_leaves_the_connection():
    """A late answer holds what comes before all that follows it: whoever waits no longer must not be shown the rest."""
    crowd = Crowd(None)  # type: ignore[arg-type]
    device = Device(crowd, "phone", "anna", "token", "ws://nowhere")
    device.follow(ROOM)
    first = connect(device)
    first.say(subscribed(first.sent[0]["id"], 2))
    assert device.online
    device.lost("cut")
    second = connect(device)
    assert second.sent[0]["subscribe"] == {"channel": ROOM, "recover": True, "epoch": "e", "offset": 2}
    device.overdue(second.sent[0]["id"], device.connections)
    second.say(subscribed(second.sent[0]["id"], 2, 3, 4))
    second.say({"push": {"channel": ROOM, "pub": joined(5)}})
    assert second.closed
    third = connect(device)
    third.say(subscribed(third.sent[0]["id"], 2, 3, 4, 5))
    assert [item.offset for item in crowd.evidence.shown["phone", ROOM]] == [3, 4, 5]
    assert device.online
    assert not [fault for fault in judge(crowd.evidence, []) if "hole" in fault.how]


async def test_a_device_that_ends_by_itself_is_no_evidence_against_the_platform(monkeypatch: pytest.MonkeyPatch):
    """It would look like one that the platform does not serve."""

    async def broken(url: str, token: str) -> None:
        raise AssertionError("nobody foresaw this")

    crowd = Crowd(None)  # type: ignore[arg-type]
    device = Device(crowd, "phone", "anna", "token", "ws://nowhere")
    crowd.devices.append(device)
    monkeypatch.setattr(Line, "open", broken)
    device.start()
    with pytest.raises(RuntimeError, match="1 devices have ended by themselves"):
        await crowd.settle(limit_s=0.1)


async def test_a_connection_that_is_lost_before_its_opener_has_its_turn_is_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch,
):
    async def lost(*_: object, **__: object) -> tuple[None, None]:
        return None, None  # what picows returns then

    monkeypatch.setattr("benchmarks.load.sockets.ws_connect", lost)
    with pytest.raises(SocketFailed, match="lost"):
        await ChatSocket.open("ws://nowhere", "token")


class Waiting(Crowd):
    """A crowd whose outboxes hold by turns what they are said to, a look each."""

    def __init__(self, *held: int) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._held = list(held)

    @property
    def unsettled(self) -> int:
        return self._held.pop(0) if len(self._held) > 1 else self._held[0]


@pytest.mark.parametrize(
    ("held", "looks"),
    [
        ((0,), 0),  # nothing waits
        ((100, 100), 2),  # it grows no less
        ((1000, 900, 900, 800, 800, 700, 700, 0, 0), 4),  # it does: the time begins anew each time
    ],
)
async def test_what_piled_up_has_the_time_that_it_needs_while_it_grows_less(
    monkeypatch: pytest.MonkeyPatch, held: tuple[int, ...], looks: int
) -> None:
    at_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal at_s
        at_s += seconds

    monkeypatch.setattr("tests.support.crowd.asyncio.sleep", sleep)
    monkeypatch.setattr("tests.support.crowd.perf_counter", lambda: at_s)
    await Waiting(*held)._worked_off(0.15)
    assert round(at_s / 0.1) == looks


async def test_before_the_log_is_read_everybody_who_has_not_settled_falls_silent() -> None:
    crowd = Waiting(1)
    device = Device(crowd, "phone", "anna", "token", "ws://nowhere")
    stopped = []

    async def stop() -> None:
        stopped.append(device)

    device.stop = stop  # type: ignore[method-assign]
    crowd.devices.append(device)
    await crowd.settle(0.05)
    assert stopped == [device]
