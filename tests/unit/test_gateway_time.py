"""A gateway's deadlines under virtual time."""

import asyncio
from typing import Any

from gateway.settings import GatewaySettings
from gateway.switchboard import Switchboard
from tests.support.fake_platform import CountingMetrics, FakePlatform
from tests.support.simulated_loop import VirtualLoop

TICK_S = 0.5


class LoopClock:
    def now_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class Waiting:
    """A connection that has only a deadline."""

    due_key = 0
    authenticated = False

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.late_s: float | None = None

    def tick(self, now_s: float) -> None:
        self.late_s = now_s - self.deadline_s


async def lateness() -> list[float]:
    """How late each of many deadlines is met, by a gateway that begins in the middle of a tick."""
    await asyncio.sleep(0.37)
    p: Any = FakePlatform()
    board = Switchboard(
        GatewaySettings(tick_s=TICK_S, audit_s=0), p, p.broker, p, p, p, LoopClock(), lambda: "id", CountingMetrics()
    )
    keeping = asyncio.create_task(board._keep_time())
    begun_s = asyncio.get_running_loop().time()
    peers = [Waiting(begun_s + 1 + n / 97) for n in range(200)]
    for peer in peers:
        board.schedule(peer)  # type: ignore[arg-type]
    await asyncio.sleep(5)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    return [peer.late_s for peer in peers if peer.late_s is not None]


def test_a_deadline_is_met_within_a_tick() -> None:
    loop = VirtualLoop("seed")
    try:
        late_s = loop.run_until_complete(lateness())
    finally:
        loop.dispose()
    assert len(late_s) == 200
    assert min(late_s) >= 0
    assert max(late_s) <= TICK_S + 0.001
