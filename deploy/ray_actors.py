"""The Ray actors: hosts, gateways and placement. Ray places, supervises and restarts them; data never travels by its calls.

An actor builds and starts its part by itself as soon as its process is up, on its own event loop: a process that Ray has
restarted is at work again without anybody calling it. SIGTERM drains the part and ends the process, and Ray starts a fresh
one: only `Fleet.remove` is for good.
"""

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import ray

from deploy import registry
from deploy.settings import Settings

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
LOOK_S: Final = 2.0
"""How often placement looks which hosts there are."""
STOP_LIMIT_S: Final = 30.0
"""A part that has not stopped by then is left where it is, and its process ends."""
ANSWER_S: Final = 0.2
"""Between the end of draining and that of the process: the caller is to get its answer."""


class Part(Protocol):
    """What an actor runs: a host, a gateway, or placement."""

    @property
    def identity(self) -> str:
        """Differs between one life of the part and the next."""
        ...

    async def start(self) -> dict[str, int]:
        """Begin to work; returns the ports it listens on, by name."""
        ...

    async def stop(self, *, with_all: bool = False) -> None:
        """Finish what was begun and hand over what the part does, then return.

        `with_all`: the whole platform stops, and there is nobody to hand over to.
        """
        ...


Build = Callable[[Settings, str], Part]


class Keeper:
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
        self._stopping: asyncio.Task[None] | None = None
        self._exit: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        _on_sigterm(functools.partial(self._loop.call_soon_threadsafe, self._terminated))
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        while self._part is None:
            part = None
            try:
                part = self._build(await self._current(self._settings), self._name)
                self._ports = await part.start()
                self._part = part
            except Exception as error:
                log.exception("%s %s could not start", self.role, self._name)
                self._error = f"{type(error).__name__}: {error}"
                await self._abandon(part)
                await asyncio.sleep(RETRY_S)
        registry.enter(self._settings, self.role, self._name, os.getpid(), self._ports)
        self._up.set()

    async def _current(self, settings: Settings) -> Settings:
        """The settings, with what has changed since the actor was made."""
        return settings

    async def _abandon(self, part: Part | None) -> None:
        """Close whatever a failed start has opened: the next one opens it again."""
        if part is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(STOP_LIMIT_S):
                    await part.stop(with_all=True)

    # --- asked by others -------------------------------------------------------------------------------------------

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
        """Stop the part because the whole platform stops; the process goes on until Ray ends it."""
        await self._stopped(with_all=True)

    async def drain(self, end: bool = True) -> None:
        """Hand over what the part does, and stop it. With `end` the process ends as well, and Ray starts a fresh one."""
        await self._stopped(with_all=False)
        if end:
            self._end_process()

    # --- ending ----------------------------------------------------------------------------------------------------

    async def _stopped(self, *, with_all: bool) -> None:
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._stop(with_all))
        await asyncio.shield(self._stopping)

    async def _stop(self, with_all: bool) -> None:
        log.info("%s %s stops", self.role, self._name)
        self._task.cancel()
        if self._part is not None:
            try:
                async with asyncio.timeout(STOP_LIMIT_S):
                    await self._part.stop(with_all=with_all)
            except Exception:
                log.exception("%s %s did not stop in order", self.role, self._name)
        registry.leave(self._settings, self.role, self._name)
        self._gone.set()

    def _terminated(self) -> None:
        if self._exit is None:
            log.info("%s %s got SIGTERM", self.role, self._name)
            self._exit = self._loop.create_task(self.drain())

    def _end_process(self) -> None:
        # Ray restarts an actor whose process has ended, and not one that has ended by `ray.actor.exit_actor`.
        self._loop.call_later(ANSWER_S, os._exit, 0)


def _on_sigterm(call: Callable[[], object]) -> None:
    """Call this when the process gets SIGTERM, from Ray's main thread, instead of ending at once.

    Python hears signals in the main thread alone. That is Ray's, which has set its own handler before any of our code
    runs: what can be replaced is only what that handler calls. A test on a real cluster guards it.
    """
    from ray._private import worker

    worker.raise_sys_exit_with_custom_error_message = lambda *_args, **_options: call()


class Host(Keeper):
    role = "host"


class Gateway(Keeper):
    role = "gateway"


class Placement(Keeper):
    """Placement, which also hears from Ray which hosts there are, and when the process of one has died."""

    role = "placement"

    def __init__(self, settings: Settings, name: str, build: Build) -> None:
        super().__init__(settings, name, build)
        self._watched: dict[str, asyncio.Task[None]] = {}
        self._looking = self._loop.create_task(self._look())

    async def _current(self, settings: Settings) -> Settings:
        """A restarted placement expects as many hosts as there are, not as many as there once were to be."""
        hosts = len(await asyncio.to_thread(names, "host"))
        return msgspec.structs.replace(settings, hosts=hosts or settings.hosts)

    async def _look(self) -> None:
        await self._up.wait()
        while not self._gone.is_set():
            try:
                for name in await asyncio.to_thread(names, "host"):
                    if name not in self._watched or self._watched[name].done():
                        self._watched[name] = self._loop.create_task(self._watch(name))
            except Exception as error:
                log.info("Ray does not say which hosts there are: %r", error)
            await asyncio.sleep(LOOK_S)

    async def _watch(self, name: str) -> None:
        """Tell placement at once when the host's process dies. Returns when there is no such host any more."""
        while not self._gone.is_set():
            identity = ""
            try:
                handle = ray.get_actor(name)
                identity = (await handle.info.remote())["identity"]
                await handle.until_gone.remote()
            except ray.exceptions.RayActorError:
                died = getattr(self._part, "died", None)
                if identity and died is not None:
                    died(identity)
            except ValueError:
                return
            except (RuntimeError, ray.exceptions.RayError) as error:
                log.info("%s cannot be watched yet: %r", name, error)
            await asyncio.sleep(RETRY_S)


def names(role: str) -> list[str]:
    """The actors of a role that Ray keeps, such as `host-0`, by number. Blocks for a call to Ray."""
    numbers = (name.removeprefix(f"{role}-") for name in ray.util.list_named_actors())
    return [f"{role}-{number}" for number in sorted(int(number) for number in numbers if number.isdecimal())]


def start(cls: type[Keeper], settings: Settings, name: str, build: Build) -> Any:
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
    ).remote(settings.of_role(name.partition("-")[0]), name, build)
