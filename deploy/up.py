"""`renoveasy up`: one process tree on one machine, started in order, stopped in the reverse order, and nothing else."""

import asyncio
import contextlib
import ctypes
import inspect
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from deploy import registry, runtime
from deploy.certificates import check_certificates
from deploy.given_secrets import check_secrets
from deploy.local import Server, nats_server, opened_log, redis_server
from deploy.ray_local import RayHead
from deploy.runtime import Runtime, StartError
from deploy.settings import Settings

STOP_LIMIT_S: Final = 10.0
REFRESH_S: Final = 1.0
_PR_SET_CHILD_SUBREAPER: Final = 36

_log = logging.getLogger(__name__)


class Failed(Exception):
    """The platform ended although nobody stopped it; the text says why."""


def run(settings: Settings) -> int:
    """Run the platform until it is told to stop (0) or fails (1). Ctrl-C twice ends it the hard way (130)."""
    from deploy.telemetry import configure_logging

    console = Console(file=os.fdopen(os.dup(sys.stdout.fileno()), "w"), highlight=False, soft_wrap=True)
    try:
        check_secrets(settings)
        check_certificates(settings)
        with runtime.locked(settings.data_dir):
            configure_logging("up", settings.logs_dir, settings.log_level)
            _keep_terminal_clean(settings)
            runtime.make_run_dir(settings)
            before = runtime.read(settings.data_dir)
            if leftovers := runtime.end_leftovers(before):
                console.print(f"ended {len(leftovers)} processes that an earlier start left behind")
            runtime.check_public_ports(settings)
            with runtime.chosen_ports(settings, before.settings if before else None) as chosen:
                return asyncio.run(_Up(runtime.with_addresses(chosen), settings, console).run())
    except StartError as error:
        console.print(f"[bold red]error:[/] {_escaped(str(error))}")
        return 1


class _Up:
    """The order of things. `settings` has an address and a port for everything, `given` is what was set."""

    def __init__(self, settings: Settings, given: Settings, console: Console) -> None:
        self.settings = settings
        self.given = given
        self.console = console
        self.token = secrets.token_hex(16)
        self.stopping = asyncio.Event()
        self.servers: list[Server] = []
        self.ray: RayHead | None = None
        self.cluster: Any = None
        self._state = "starting"
        self._interrupts = 0

    async def run(self) -> int:
        began = time.monotonic()
        _adopt_orphans()
        os.environ[runtime.TOKEN_KEY] = self.token
        shutil.rmtree(self.settings.data_dir / "processes", ignore_errors=True)
        self._write_runtime()
        self._hear_signals()
        code = 1
        try:
            async with AsyncExitStack() as stack:
                if await self._unless_stopped(self._start(stack)):
                    self._announce(time.monotonic() - began)
                    await self._unless_stopped(self._watch())
                self._state = "stopping"
                self._write_runtime()
                self.console.print("stopping")
            code = 0
        except (StartError, Failed) as error:
            self.console.print(f"[bold red]error:[/] {_escaped(str(error))}")
        except Exception as error:
            _log.exception("the platform failed")
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            log = self.settings.logs_dir / "up.log"
            self.console.print(f"[bold red]error:[/] {_escaped(reason)}\nwhat led to it is in {log}")
        await asyncio.to_thread(self._end_rest)
        self._state = "stopped"
        self._write_runtime()
        if code == 0:
            self.console.print("stopped")
        sys.stdout.flush()
        sys.stderr.flush()
        # A thread may still be inside a call to a Ray that is gone; nothing waits for it.
        logging.shutdown()
        os._exit(code)

    # --- start ---------------------------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        self.console.print(f"data folder {settings.data_dir}")
        with self._step("database", "SQLite" if self.given.embedded["database"] else "given"):
            await self._migrate()
        for role, make in (("nats", nats_server), ("redis", redis_server)):
            if self.given.embedded[role]:
                server = make(settings)
                with self._step(role, f"127.0.0.1:{server.port}"):
                    stack.push_async_callback(server.stop)
                    await server.start()
                self.servers.append(server)
        self.ray = RayHead(settings, self.token)
        with self._step("ray", f"head on 127.0.0.1:{settings.ports.gcs}"):
            stack.push_async_callback(self.ray.stop)
            await self.ray.start()
            self._write_runtime()
        with self._step("cluster", f"{settings.hosts} hosts, {settings.gateways} gateways, placement, REST"):
            await self._start_cluster()
            stack.push_async_callback(self._stop_cluster)
        self._hear_signals()  # Ray has put its own handler in place of ours

    async def _migrate(self) -> None:
        from domain.ports import StoreUnavailable
        from storage.engine import migrate

        try:
            await migrate(self.settings.database_url, secrets.token_hex(8))
        except StoreUnavailable as error:
            raise StartError(f"the database cannot be used: {error} (RENOVEASY_DATABASE_URL)") from None
        await self._make_phones_secret()

    async def _make_phones_secret(self) -> None:
        from deploy.keys import make_phones_secret
        from storage.reencryption import Reencrypted

        told_s = time.monotonic()

        def report(progress: Reencrypted) -> None:
            nonlocal told_s
            if time.monotonic() - told_s >= 2:
                told_s = time.monotonic()
                self.console.print(f"  keys      {progress.done} of {progress.total} phones are encrypted")

        await make_phones_secret(self.settings, report, always_open=True)

    async def _start_cluster(self) -> None:
        from deploy.wiring import start_cluster

        self.cluster = await _called(start_cluster, self.settings)

    async def _stop_cluster(self) -> None:
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await _called(self.cluster.stop)
        except TimeoutError:
            _log.warning("the cluster did not stop within %s s", STOP_LIMIT_S)
        except Exception:
            _log.exception("the cluster could not be stopped in order")

    # --- while it runs -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        assert self.ray is not None
        self._state = "ready"
        ray_ended = asyncio.create_task(self.ray.ended())
        try:
            while not ray_ended.done():
                await asyncio.to_thread(self._refresh)
                await asyncio.wait([ray_ended], timeout=REFRESH_S)
        finally:
            ray_ended.cancel()
        raise Failed(
            f"Ray ended by itself with code {ray_ended.result()}; its logs are in {self.ray.log.parent / 'ray'}"
        )

    def _refresh(self) -> None:
        """Say in the data folder which processes are ours now: they may be other ones than a second ago."""
        own = [runtime.Process("up", "up", os.getpid(), {})]
        for source in (*self.servers, self.ray):
            own += source.processes() if source is not None else []
        for process in own:
            with contextlib.suppress(OSError, ProcessLookupError):
                registry.enter(self.settings, process.role, process.name, process.pid, process.ports)
        if self.ray is not None and self.ray.certificate is not None:
            self.ray.certificate.refresh()
        _reap_adopted()
        self._write_runtime()

    def _write_runtime(self) -> None:
        runtime.write(
            Runtime(
                pid=os.getpid(),
                started=runtime.start_of(os.getpid()),
                state=self._state,
                token=self.token,
                settings=self.settings,
                tree=runtime.descendants(os.getpid()) if self._state != "stopped" else (),
            )
        )

    def _announce(self, took_s: float) -> None:
        settings = self.settings
        rows = {
            "REST": f"{settings.rest_address}/v1",
            "API documents": f"{settings.rest_address}/schema",
            "WebSocket": settings.ws_address,
            "Ray dashboard": f"http://127.0.0.1:{settings.dashboard_port}",
            "Prometheus metrics": f"http://127.0.0.1:{settings.metrics_port}/metrics",
            "data folder": str(settings.data_dir),
            "logs": str(settings.logs_dir),
        }
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in rows.items():
            table.add_row(name, value)
        self._refresh()
        self.console.print(table)
        self.console.print(f"ready in {took_s:.1f} s; try `renoveasy demo`, stop with Ctrl-C")
        self.console.file.flush()

    # --- stop ----------------------------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupted)

    def _interrupted(self) -> None:
        self._interrupts += 1
        self.stopping.set()
        if self._interrupts > 1:
            self.console.print("stopping at once")
            runtime.end([*runtime.descendants(os.getpid()), *runtime.carriers(self.token)])
            os._exit(130)

    async def _unless_stopped(self, work: Awaitable[None]) -> bool:
        """Do the work unless we are told to stop first; whether it was finished."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self.stopping.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.wait([task])
        return False

    def _end_rest(self) -> None:
        """End what outlived its own stop, so that nothing of this start is left."""
        rest = runtime.end(runtime.descendants(os.getpid()), grace_s=1.0)
        rest += runtime.end(runtime.carriers(self.token))
        if rest:
            _log.info("ended %d processes that had not ended by themselves", len(rest))
        _reap_adopted()
        sockets = (self.settings.run_dir / "r").glob("session_2*/sockets")
        for folder in (self.settings.run_dir / "h", *sockets):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _step(self, name: str, what: str) -> Iterator[None]:
        began = time.monotonic()
        self.console.print(f"  {name:<10}{_escaped(what)} …")
        yield
        self.console.print(f"  {name:<10}up after {time.monotonic() - began:.1f} s")


async def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, be it a coroutine function or one that blocks, which then has a thread of its own."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def _keep_terminal_clean(settings: Settings) -> None:
    """Send what libraries print, Ray's C++ among them, to a file; the terminal is the console's alone."""
    log = opened_log(settings.logs_dir / "up.out")
    sys.stdout.flush()
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)


def _adopt_orphans() -> None:
    """Become the parent of whatever loses its own below us (HAProxy, Ray's agents), so that we can see and end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_adopted() -> None:
    """Bury dead orphans; our own children are buried by asyncio, which waits for each by its pid."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if child.status() == psutil.STATUS_ZOMBIE and time.time() - child.create_time() > 5 * REFRESH_S:
                os.waitpid(child.pid, os.WNOHANG)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
