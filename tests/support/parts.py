"""The platform's parts as plain processes: hosts, gateways, placement, REST; started in a second or two, without Ray.

A `Part` is one process that can be killed, paused, run in a network namespace or under another limit. `Parts` is a whole
platform of them on given servers. Nothing here blocks the event loop for longer than it takes to fork.
"""

import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psutil

from actors.placement import HEARTBEAT_SUBJECT, Heartbeat
from domain.ids import PARTITIONS
from domain.ports import Received
from storage.broker import NatsBroker
from tests.support import servers
from tests.support.part import run_forked
from tests.support.servers import free_port

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 60.0
STOP_LIMIT_S = 45.0
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["pytest", "tests.support.part"])
_heartbeat = msgspec.msgpack.Decoder(Heartbeat).decode


class PartFailed(AssertionError):
    """A part ended, or did not start in time; carries the end of what it printed."""


class Forked:
    """A part forked by multiprocessing's fork server, with as much of `subprocess.Popen` as is needed here."""

    def __init__(self, arguments: tuple[str, str, str, dict[str, str], str]) -> None:
        self._process = _forks.Process(target=run_forked, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self._process.exitcode


class Part:
    """One process. It is forked from one that has loaded all modules, which takes a tenth of the time; unless it has a `wrap`
    or an `LD_PRELOAD`. A wrap stands before its command and must exec it, so that the pid stays the part's:
    `["ip", "netns", "exec", "ns1"]`, `["prlimit", "--nofile=200"]`, `["faketime", "-f", "+1h"]`.
    """

    def __init__(
        self,
        role: str,
        name: str,
        folder: Path,
        environment: Mapping[str, str],
        wrap: Sequence[str] = (),
    ) -> None:
        self.role = role
        self.name = name
        self.folder = folder
        self.environment = dict(environment)
        self.wrap = list(wrap)
        self.starts = 0
        self.started_s: list[float] = []
        """When it was launched and when it worked, by turns (`time.perf_counter`)."""
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._ready: dict[str, Any] = {}

    # --- life ----------------------------------------------------------------------------------------------------

    def launch(self) -> Self:
        """Start the process and return at once."""
        assert not self.running, f"{self.name} is running already"
        self._file("ready").unlink(missing_ok=True)
        self._ready = {}
        if self.wrap or "LD_PRELOAD" in self.environment:
            self._process = servers._starter.submit(self._execute).result()
        else:
            arguments = (self.role, self.name, str(self.folder), self.environment, str(self._file("out")))
            self._process = Forked(arguments)
        self.starts += 1
        self.started_s.append(time.perf_counter())
        return self

    def _execute(self) -> subprocess.Popen[bytes]:
        command = [*servers._dying_with_us(), *self.wrap, sys.executable, "-m", "tests.support.part"]
        command += [self.role, self.name, str(self.folder)]
        with self._file("out").open("ab") as out:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment, cwd=ROOT
            )

    async def ready(self, limit_s: float = START_LIMIT_S) -> Self:
        """Return when it works.

        Raises:
            PartFailed: it ended, or took longer.
        """
        deadline = time.monotonic() + limit_s
        while not self._file("ready").exists():
            if not self.running or time.monotonic() > deadline:
                raise PartFailed(f"{self.name} is not ready (running: {self.running}):\n{self.output}")
            await asyncio.sleep(0.02)
        self._ready = json.loads(self._file("ready").read_text())
        self.started_s.append(time.perf_counter())
        return self

    async def start(self, limit_s: float = START_LIMIT_S) -> Self:
        return await self.launch().ready(limit_s)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_LIMIT_S)

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def set_trap(self, bait: str) -> None:
        """The host will get SIGSTOP at the very moment when it has decided to commit this text, and has not begun to."""
        draft = self._file("trap.draft")
        draft.write_text(bait)
        draft.replace(self._file("trap"))

    async def trapped(self, limit_s: float = 30.0) -> None:
        """Return when the host has stopped. Raises TimeoutError."""
        async with asyncio.timeout(limit_s):
            while not self.paused:
                await asyncio.sleep(0.005)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def stop(self, limit_s: float = STOP_LIMIT_S) -> int:
        """SIGTERM, and return its exit code when it has ended in order; killed, with code -9, if it does not."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        return await self.ended(limit_s)

    async def ended(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Its exit code, when it has ended by itself; -9 if it had to be killed after `limit_s`."""
        assert self._process is not None
        deadline = time.monotonic() + limit_s
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
            await asyncio.sleep(0.01)
        return int(self._process.returncode)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    # --- looking at it -------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def paused(self) -> bool:
        return self.running and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def identity(self) -> str:
        """What tells this life of the part from others: a host's incarnation, as takeover rows name it."""
        return str(self._ready["identity"])

    @property
    def ports(self) -> dict[str, int]:
        return dict(self._ready["ports"])

    @property
    def output(self) -> str:
        """The end of what it printed and logged."""
        log = Path(self.environment["RENOVEASY_DATA_DIR"]) / "logs" / f"{self.name}.log"
        texts = [path.read_text(errors="replace")[-4000:] for path in (self._file("out"), log) if path.exists()]
        return "\n--- log\n".join(texts)

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def fds(self) -> int:
        return int(psutil.Process(self.pid).num_fds())

    async def stats(self) -> dict[str, Any]:
        """Tasks, threads, objects, descriptors and metrics, counted by the process itself."""
        path = self._file("stats")
        path.unlink(missing_ok=True)
        self._signal(signal.SIGUSR1)
        async with asyncio.timeout(5):
            while not path.exists():
                await asyncio.sleep(0.01)
        return dict(json.loads(path.read_text()))

    def commits(self) -> list[dict[str, Any]]:
        """What all lives of a host have committed: incarnation, time, per partition the first and the last position, and which
        partitions somebody else was found to have taken."""
        path = self._file("commits")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self.name}.{kind}"


class Parts:
    """A platform of parts on given servers. As an async context manager it works inside, and is gone outside.

    `supervised`: a part that dies is started again after `restart_after_s`, as Ray would do it. `wraps` and
    `environments` are by the part's name, for that part alone; `environment` is for all. Keys are whole
    (`RENOVEASY_ENV`, `LD_PRELOAD`).
    """

    def __init__(
        self,
        database_url: str,
        nats_url: str,
        redis_url: str = "redis://127.0.0.1:1/0",
        *,
        hosts: int = 2,
        gateways: int = 1,
        rest: bool = False,
        placement: bool = True,
        folder: Path | None = None,
        supervised: bool = False,
        restart_after_s: float = 1.0,
        wraps: Mapping[str, Sequence[str]] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._temporary = tempfile.mkdtemp(prefix="renoveasy-parts-") if folder is None else None
        self.folder = folder or Path(self._temporary or "")
        self.database_url = database_url
        self.nats_url = nats_url
        self.ws_port, self.http_port = free_port(), free_port()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RENOVEASY_", "RAY_"))}
        self.environment = inherited | {
            "RENOVEASY_DATA_DIR": str(self.folder),
            "RENOVEASY_DATABASE_URL": database_url,
            "RENOVEASY_NATS_URL": nats_url,
            "RENOVEASY_REDIS_URL": redis_url,
            "RENOVEASY_WS_PORT": str(self.ws_port),
            "RENOVEASY_HTTP_PORT": str(self.http_port),
            "RENOVEASY_HOSTS": str(max(1, hosts)),
            "RENOVEASY_GATEWAYS": str(max(1, gateways)),
            "RENOVEASY_ENV": "dev",
        }
        self.environment |= environment or {}
        self._wraps, self._environments = wraps or {}, environments or {}
        self.parts: dict[str, Part] = {}
        for name in ["placement"] if placement else []:
            self.add("placement", name)
        for number in range(hosts):
            self.add("host", f"host-{number}")
        for number in range(gateways):
            self.add("gateway", f"gateway-{number}")
        for name in ["rest"] if rest else []:
            self.add("rest", name)
        self.supervised = supervised
        self.restart_after_s = restart_after_s
        self.unforeseen: list[str] = []
        """Deaths that nobody here has caused, with the end of the log."""
        self._expected: set[int] = set()
        self._supervisor: asyncio.Task[None] | None = None

    def add(self, role: str, name: str) -> Part:
        """A further part, not started yet."""
        environment = self.environment | dict(self._environments.get(name, {}))
        part = self.parts[name] = Part(role, name, self.folder, environment, self._wraps.get(name, ()))
        return part

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop_supervising()
        for part in self.parts.values():
            part.kill()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    async def start(self) -> None:
        """Start every part; returns when all work and every partition has an owner."""
        for part in self.parts.values():
            part.launch()
        await asyncio.gather(*(part.ready() for part in self.parts.values()))
        if self.hosts:
            await self.settled()
        if self.supervised:
            self.supervise()

    def supervise(self) -> None:
        """From here on whatever dies is started again."""
        self._supervisor = asyncio.create_task(self._watch())

    async def stop_supervising(self) -> None:
        task, self._supervisor = self._supervisor, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        restarts: set[asyncio.Task[None]] = set()
        waiting: set[str] = set()

        async def restart(part: Part) -> None:
            await asyncio.sleep(self.restart_after_s)
            if not part.running:
                part.launch()
            waiting.discard(part.name)
            await part.ready()

        try:
            while True:
                for part in self.parts.values():
                    if not part.running and part.starts and part.name not in waiting:
                        if part.pid not in self._expected:
                            self.unforeseen.append(f"{part.name} died by itself:\n{part.output}")
                        waiting.add(part.name)
                        task = asyncio.create_task(restart(part))
                        restarts.add(task)
                        task.add_done_callback(restarts.discard)
                await asyncio.sleep(0.02)
        finally:
            for task in restarts:
                task.cancel()
            await asyncio.gather(*restarts, return_exceptions=True)

    def kill(self, name: str) -> None:
        """SIGKILL a part; the supervisor, if there is one, starts it again."""
        part = self.parts[name]
        self._expected.add(part.pid)
        part.kill()

    def expect_end(self, name: str) -> None:
        """The part may be ended by the platform itself, because it is about to be silent."""
        self._expected.add(self.parts[name].pid)

    async def stop(self, name: str) -> int:
        """SIGTERM a part and wait for its end; the supervisor, if there is one, starts it again."""
        part = self.parts[name]
        self._expected.add(part.pid)
        return await part.stop()

    # --- looking at it -------------------------------------------------------------------------------------------

    def of(self, role: str) -> list[Part]:
        return [part for part in self.parts.values() if part.role == role]

    @property
    def hosts(self) -> list[Part]:
        return self.of("host")

    @property
    def gateways(self) -> list[Part]:
        return self.of("gateway")

    @property
    def websocket(self) -> str:
        return f"ws://127.0.0.1:{self.ws_port}/connection/websocket"

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    async def settled(self, hosts: int | None = None, limit_s: float = START_LIMIT_S) -> None:
        """Return when so many hosts (all that run) own all partitions between them.

        Raises:
            PartFailed: not in time.
        """
        running = [part for part in self.hosts if part.running and not part.paused]
        wanted = len(running) if hosts is None else hosts
        async with self.watching() as beats:
            deadline = time.monotonic() + limit_s
            while True:
                now = [beat for beat, at_s in beats.values() if time.monotonic() - at_s < 1.0]
                if len(now) == wanted and sum(beat.owned for beat in now) == PARTITIONS and all(b.owned for b in now):
                    return
                if time.monotonic() > deadline:
                    logs = "\n".join(f"--- {part.name}\n{part.output}" for part in running)
                    raise PartFailed(f"{wanted} hosts do not own all partitions: {beats}\n{logs}")
                await asyncio.sleep(0.05)

    def watching(self) -> "Heartbeats":
        """The heartbeats of all hosts while the block runs."""
        return Heartbeats(self.nats_url)

    async def until(self, what: str, true: Callable[[], object], limit_s: float = 30.0) -> None:
        """Look again and again until it is true; fails with `what`, and the parts' logs, when it does not come true."""
        deadline = time.monotonic() + limit_s
        while not true():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {part.name}\n{part.output}" for part in self.parts.values())
                raise AssertionError(f"not in {limit_s} s: {what}\n{logs}")
            await asyncio.sleep(0.01)


class Heartbeats:
    """By host's name: its last heartbeat and when that came (`time.monotonic`)."""

    def __init__(self, nats_url: str) -> None:
        self._broker = NatsBroker(nats_url, "", "onlooker", "census")
        self.beats: dict[str, tuple[Heartbeat, float]] = {}

    async def __aenter__(self) -> dict[str, tuple[Heartbeat, float]]:
        await self._broker.start()
        await self._broker.subscribe(HEARTBEAT_SUBJECT, self._heard)
        return self.beats

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._broker.close()

    def _heard(self, received: Received) -> None:
        beat = _heartbeat(received.data)
        self.beats[beat.name] = (beat, time.monotonic())
