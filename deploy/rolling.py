"""Rolling operations: hosts and gateways replaced, added and removed while the platform works, one at a time.

Nothing is touched before everything else is well: who drains one of two hosts while the other is not heard would stop the
platform.
"""

import asyncio
import contextlib
import fcntl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final, Literal

import ray

from deploy import ray_actors
from deploy.census import Beats, Census, settled
from deploy.ray_local import connect
from deploy.settings import Settings
from domain.ports import BrokerUnavailable

Role = Literal["host", "gateway"]
Say = Callable[[str], None]

LOCK: Final = "operations.lock"
DRAIN_LIMIT_S: Final = ray_actors.STOP_LIMIT_S + 15.0
UP_LIMIT_S: Final = 120.0
"""A fresh process needs three seconds on an idle machine."""
SETTLE_LIMIT_S: Final = 60.0
LOOK_S: Final = 0.2


class Stuck(Exception):
    """The operation ends here; the text says at what, how things stand, and what to do."""


class Rolling:
    """Operations on the platform that this process is a Ray driver of. Progress is told to `say`.

    Every method raises `Stuck`, and then has left everything that it had not begun with as it was.
    """

    def __init__(self, settings: Settings, census: Census, say: Say) -> None:
        self._settings = settings
        self._census = census
        self._say = say

    async def names(self, role: str) -> list[str]:
        return await asyncio.to_thread(ray_actors.names, role)

    async def check(self, names: Sequence[str]) -> None:
        """All of these exist, and the hosts own everything between them."""
        known = {"placement", *await self.names("host"), *await self.names("gateway")}
        if unknown := [name for name in names if name not in known]:
            raise Stuck(f"there is no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        await self._settled(f"nothing was done: {self._diagnosis()}")

    async def replace(self, name: str) -> None:
        """Drain the part and wait until a fresh process does its work, for a host: owns partitions again."""
        began_s = time.monotonic()
        before = await self._info(name)
        if name.startswith("host") and len(await self.names("host")) == 1:
            self._say(f"{name:<12}is the only host: its streams pause until it is back")
        await self._drained(name, before, end=True)
        after = await self._successor(name, before)
        await self._owning(name, after)
        took_s = time.monotonic() - began_s
        self._say(f"{name:<12}replaced after {took_s:.1f} s: pid {before['pid']} -> {after['pid']}{self._owns(name)}")

    async def remove(self, name: str) -> None:
        """Drain the part and end it for good; the others own what it owned."""
        role = name.partition("-")[0]
        if role not in ("host", "gateway") or len(await self.names(role)) == 1:
            raise Stuck(f"{name} is the last of its kind and stays; `renoveasy drain {name}` replaces it")
        before = await self._info(name)
        await self._drained(name, before, end=False)
        await asyncio.to_thread(lambda: ray.kill(ray.get_actor(name), no_restart=True))
        if role == "host":
            await self._census.until(lambda beats: name not in beats, SETTLE_LIMIT_S)
            await self._settled(f"{name} is gone, and its partitions are not all owned: {self._diagnosis()}")
        self._say(f"{name:<12}removed")

    async def scale(self, role: Role, count: int) -> None:
        """Add or remove until there are so many; those with the highest numbers go first."""
        for name in reversed((await self.names(role))[count:]):
            await self.remove(name)
        for number in range(count):
            name = f"{role}-{number}"
            existing = await self.names(role)
            if name not in existing and len(existing) < count:
                await self._add(role, number)

    async def _add(self, role: Role, number: int) -> None:
        from deploy.fleet import start_part  # brings everything that hosts and gateways are made of

        name = f"{role}-{number}"
        self._say(f"{name:<12}starting")
        await asyncio.to_thread(start_part, self._settings, role, number)
        info = await self._successor(name, {"identity": ""})
        await self._owning(name, info)
        self._say(f"{name:<12}works: pid {info['pid']}{self._owns(name)}")

    # --- steps -----------------------------------------------------------------------------------------------------

    async def _info(self, name: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(SETTLE_LIMIT_S):
                return dict(await ray.get_actor(name).info.remote())
        except (TimeoutError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise Stuck(
                f"{name} does not answer ({type(error).__name__}): if its process hangs, end it with kill -9 "
                "(`renoveasy ps` shows the pid), and Ray starts it anew"
            ) from None

    async def _drained(self, name: str, before: dict[str, Any], *, end: bool) -> None:
        began_s = time.monotonic()
        self._say(f"{name:<12}draining (pid {before['pid']}{self._owns(name)})")
        try:
            async with asyncio.timeout(DRAIN_LIMIT_S):
                await ray.get_actor(name).drain.remote(end)
        except ray.exceptions.RayActorError:
            self._say(f"{name:<12}ended while it was drained")
            return
        except TimeoutError:
            raise Stuck(
                f"{name} did not drain within {DRAIN_LIMIT_S:g} s; end it with kill -9 {before['pid']}"
            ) from None
        self._say(f"{name:<12}drained in {time.monotonic() - began_s:.1f} s")

    async def _successor(self, name: str, before: dict[str, Any]) -> dict[str, Any]:
        """What the next process under this name says of itself, once its part works."""
        deadline_s = time.monotonic() + UP_LIMIT_S
        why = "it was not heard of"
        while time.monotonic() < deadline_s:
            try:
                async with asyncio.timeout(max(0.1, deadline_s - time.monotonic())):
                    info = dict(await ray.get_actor(name).info.remote())
                if info["identity"] != before["identity"]:
                    return info
            except (TimeoutError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
            await asyncio.sleep(LOOK_S)
        raise Stuck(
            f"no fresh {name} works after {UP_LIMIT_S:g} s ({why}); the others do its work; look into "
            f"{self._settings.logs_dir / f'{name}.log'}"
        )

    async def _owning(self, name: str, info: dict[str, Any]) -> None:
        """A host counts when it owns its share again."""
        if not name.startswith("host"):
            return

        def owns(beats: Beats) -> bool:
            beat = beats.get(name)
            return beat is not None and beat.incarnation == info["identity"] and beat.owned > 0

        if not await self._census.until(owns, SETTLE_LIMIT_S):
            raise Stuck(f"{name} is up and was given no partition: {self._diagnosis()}")
        await self._settled(f"{name} is up, and not every partition is owned: {self._diagnosis()}")

    async def _settled(self, otherwise: str) -> None:
        hosts = set(await self.names("host"))
        if not await self._census.until(lambda beats: settled(beats) and hosts <= beats.keys(), SETTLE_LIMIT_S):
            raise Stuck(otherwise)

    def _owns(self, name: str) -> str:
        beat = self._census.beats().get(name)
        return f", owns {beat.owned} partitions" if beat is not None else ""

    def _diagnosis(self) -> str:
        heard = ", ".join(f"{name} owns {beat.owned}" for name, beat in self._census.beats().items())
        return f"heard of {heard or 'no host at all'}; is NATS well, does placement run? (`renoveasy doctor`, `renoveasy ps`)"


@contextlib.asynccontextmanager
async def rolling(settings: Settings, token: str, say: Say) -> AsyncIterator[Rolling]:
    """Operations on the running platform with these settings, for as long as the block lasts; one such block at a time.

    Raises:
        Stuck: somebody else is at it, or its Ray or its NATS cannot be reached.
    """
    try:
        with _alone(settings):
            connect(settings, token)  # in the main thread, as Ray wants it; nothing else runs yet
            async with Census(settings) as census:
                yield Rolling(settings, census, say)
    except (ConnectionError, BrokerUnavailable) as error:
        raise Stuck(f"the platform cannot be reached: {error}") from None
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Two operations at once could drain two hosts at once."""
    with (settings.data_dir / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Stuck("another drain or scale is under way on this platform; wait for its end") from None
        yield
