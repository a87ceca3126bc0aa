"""What keeps a part alive in an actor's process: it starts again until it works, and stops once, in the way that was asked."""

import asyncio
from pathlib import Path

import pytest

from deploy import registry
from deploy.ray_actors import Keeper
from deploy.settings import Settings, from_environment


class Part:
    """Fails to start as often as it is told to, and remembers how it was stopped."""

    failures = 0
    made: "list[Part]"

    def __init__(self, settings: Settings, name: str) -> None:
        self.identity = f"{name}-{len(Part.made)}"
        self.stops: list[bool] = []
        self.stop_error: Exception | None = None
        Part.made.append(self)

    async def start(self) -> dict[str, int]:
        if len(Part.made) <= Part.failures:
            raise OSError("the database is away")
        return {"websocket": 8080}

    async def stop(self, *, with_all: bool = False) -> None:
        self.stops.append(with_all)
        if self.stop_error is not None:
            raise self.stop_error


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    Part.failures, Part.made = 0, []
    return from_environment({"RENOVEASY_DATA_DIR": str(tmp_path)})


def listed(settings: Settings) -> list[str]:
    return [process["name"] for process in registry.processes(settings)]


async def test_a_part_that_cannot_start_is_closed_and_made_anew_until_it_can(settings: Settings) -> None:
    Part.failures = 1
    keeper = Keeper(settings, "part-0", Part)
    info = await keeper.info(5.0)
    assert (info["identity"], info["ports"]) == ("part-0-1", {"websocket": 8080})
    assert [part.stops for part in Part.made] == [[True], []], "what a failed start had opened is closed"
    assert listed(settings) == ["part-0"]


async def test_who_asks_for_a_part_that_does_not_start_is_told_why(settings: Settings) -> None:
    Part.failures = 1_000
    keeper = Keeper(settings, "part-0", Part)
    with pytest.raises(RuntimeError, match="part-0 did not start: OSError: the database is away"):
        await keeper.info(0.1)
    await keeper.stop()


@pytest.mark.parametrize(("how", "with_all"), [("drain", False), ("stop", True)])
async def test_a_part_stops_once_and_knows_whether_the_others_stay(
    settings: Settings, how: str, with_all: bool
) -> None:
    keeper = Keeper(settings, "part-0", Part)
    await keeper.info(5.0)
    watching = asyncio.create_task(keeper.until_gone())
    stop = (lambda: keeper.drain(end=False)) if how == "drain" else keeper.stop
    await asyncio.gather(stop(), stop())
    await stop()
    assert [part.stops for part in Part.made] == [[with_all]]
    await asyncio.wait_for(watching, 1.0)
    assert listed(settings) == []


async def test_a_part_that_does_not_stop_in_order_is_gone_all_the_same(settings: Settings) -> None:
    keeper = Keeper(settings, "part-0", Part)
    await keeper.info(5.0)
    Part.made[0].stop_error = OSError("the broker is away")
    await keeper.drain(end=False)
    await asyncio.wait_for(keeper.until_gone(), 1.0)
    assert listed(settings) == []
