"""The Ray actors: hosts, gateways and placement. Ray places, supervises and restarts them; data never travels by its calls.

An actor builds and starts its part by itself as soon as its process is up, on its own event loop: a process that Ray has
restarted is at work again without anybody calling it.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any, Protocol

import ray

from deploy import registry
from deploy.settings import Settings

log = logging.getLogger(__name__)

RETRY_S = 1.0


class Part(Protocol):
    """What an actor runs: a host, a gateway, or placement."""

    @property
    def identity(self) -> str:
        """Differs between one life of the part and the next."""
        ...

    async def start(self) -> dict[str, int]:
        """Begin to work; returns the ports it listens on, by name."""
        ...

    async def stop(self) -> None:
        """Finish what was begun, then return."""
        ...


Build = Callable[[Settings, str], Part]


class Resident:
    """An actor's body: keeps one part running for as long as its process lives."""

    role = "part"

    def __init__(self, settings: Settings, name: str, build: Build) -> None:
        self._settings = settings
        self._name = name
        self._build = build
        self._part: Part | None = None
        self._error = ""
        self._gone = asyncio.Event()
        self._ports: dict[str, int] = {}
        self._up = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._part is None:
            try:
                part = self._build(self._settings, self._name)
                self._ports = await part.start()
                self._part = part
            except Exception as error:
                log.exception("%s %s could not start", self.role, self._name)
                self._error = f"{type(error).__name__}: {error}"
                await asyncio.sleep(RETRY_S)
        registry.enter(self._settings, self.role, self._name, os.getpid(), self._ports)
        self._up.set()

    async def info(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Role, name, pid, ports and identity, once the part has started.

        Raises:
            RuntimeError: it did not start within `timeout_s`, and why.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise RuntimeError(f"{self.role} {self._name} did not start: {self._error or 'still trying'}") from None
        assert self._part is not None
        return {
            "role": self.role,
            "name": self._name,
            "pid": os.getpid(),
            "ports": self._ports,
            "identity": self._part.identity,
        }

    async def until_gone(self) -> None:
        """Return when the part was stopped; a caller learns of a crash by the error that Ray raises instead."""
        await self._gone.wait()

    async def stop(self) -> None:
        """Stop the part in an orderly way; the process goes on until Ray ends it."""
        self._task.cancel()
        if self._part is not None:
            await self._part.stop()
        registry.leave(self._settings, self.role, self._name)
        self._gone.set()


class Host(Resident):
    role = "host"


class Gateway(Resident):
    role = "gateway"


class Placement(Resident):
    """Placement, which also hears from Ray when the process of a host has died."""

    role = "placement"

    def __init__(self, settings: Settings, name: str, build: Build) -> None:
        super().__init__(settings, name, build)
        self._watchers = [asyncio.get_running_loop().create_task(self._watch(n)) for n in range(settings.hosts)]

    async def _watch(self, number: int) -> None:
        await self._up.wait()
        while not self._gone.is_set():
            identity = ""
            try:
                handle = ray.get_actor(f"host-{number}")
                identity = (await handle.info.remote())["identity"]
                await handle.until_gone.remote()
                return
            except ray.exceptions.RayActorError:
                died = getattr(self._part, "died", None)
                if identity and died is not None:
                    died(identity)
            except (ValueError, RuntimeError, ray.exceptions.RayError) as error:
                log.info("host-%d cannot be watched yet: %r", number, error)
            await asyncio.sleep(RETRY_S)


def start(cls: type[Resident], settings: Settings, name: str, build: Build) -> Any:
    """The handle of a named, detached actor that Ray restarts for ever; the running one if there is one already."""
    remote = ray.remote(cls)
    return remote.options(
        name=name,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=1_000,
        enable_task_events=False,
    ).remote(settings, name, build)
