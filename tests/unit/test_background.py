"""What runs in the background ends when it is told to, even where a library has lost that once."""

import asyncio

from actors.background import Background
from tests.support.fake_platform import CountingMetrics, FakePlatform, SystemClock


async def deaf_once() -> None:
    """Loses the first cancellation, as `asyncio.wait_for` of Python 3.11 does when its answer comes in the same moment."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(60)


async def test_a_host_s_work_is_cancelled_until_it_ends() -> None:
    background = Background()
    task = background.spawn(deaf_once())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await background.stop()
    assert task.cancelled()


async def test_a_gateway_s_work_is_cancelled_until_it_ends() -> None:
    from gateway.settings import GatewaySettings
    from gateway.switchboard import Switchboard

    p = FakePlatform()
    board = Switchboard(
        GatewaySettings(),
        p,
        p.broker,
        p,
        p,
        p,
        SystemClock(),
        lambda: "id",
        CountingMetrics(),  # type: ignore[arg-type]
    )
    task = board.spawn(deaf_once())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await board.stop()
    assert task.cancelled()
