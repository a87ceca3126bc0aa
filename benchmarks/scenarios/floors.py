"""What the machine itself takes, measured in the same run: a loopback round trip, one fdatasync, a bare WebSocket echo.

The echo servers are processes of their own on the servers' processor; nothing of the platform runs meanwhile.
"""

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from benchmarks.figures import Latency, Schedule, Usage, latency, per_thousand
from benchmarks.load.ticker import Ticker
from benchmarks.machine import Meter

ROUND_TRIPS: Final = 2_000
SYNCS: Final = 300
SYNC_LIMIT_S: Final = 3.0
ECHO_PER_S: Final = 1_000
ECHO_CONNECTIONS: Final = 50
DRAIN_LIMIT_S: Final = 3.0
_BLOCK_BYTES: Final = 4_096
_BODY: Final = b"x" * 192


class Floors(msgspec.Struct, frozen=True, kw_only=True):
    """One round."""

    round_trip: Latency | None
    """200 bytes there and back over a TCP connection of the loopback interface, between two processes."""
    fdatasync: Latency | None
    """Appending 4 KiB to a file beside the database and syncing it, one after the other."""
    echo: Latency | None
    """200 bytes to a bare `websockets` server and back, as an open loop of 1,000 a second over 50 connections."""
    echo_cpu_s_per_1000: float | None
    usage: Usage
    faults: list[str]

    @property
    def durable_floor_ms(self) -> float | None:
        """A round trip and a sync: less time no durable message can take."""
        if self.round_trip is None or self.fdatasync is None:
            return None
        return self.round_trip.p50_ms + self.fdatasync.p50_ms


async def floors(folder: Path, servers: set[int], seconds: float) -> Floors:
    """Measure all three; `servers` are the processors of the echo servers, `folder` is where the database will be."""
    with _echo_server("tcp", servers) as (port, _):
        round_trips = _round_trips(port)
    syncs = _syncs(folder)
    with _echo_server("websocket", servers) as (port, pid):
        echoes, usage = await _echoes(f"ws://127.0.0.1:{port}/", seconds, lambda: {pid: "echo"})
    return Floors(
        round_trip=latency(round_trips),
        fdatasync=latency(syncs),
        echo=latency(echoes),
        echo_cpu_s_per_1000=per_thousand(usage.servers_cpu_s, len(echoes)),
        usage=usage,
        faults=usage.faults(),
    )


@contextlib.contextmanager
def _echo_server(kind: str, servers: set[int]) -> Iterator[tuple[int, int]]:
    """Its port and its pid."""
    processors = ",".join(map(str, sorted(servers)))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.echo", kind, processors],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _round_trips(port: int) -> list[float]:
    body = b"x" * 200
    samples: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(ROUND_TRIPS):
            began_s = perf_counter()
            connection.sendall(body)
            came = 0
            while came < len(body):
                came += len(connection.recv(4096))
            samples.append(perf_counter() - began_s)
    return samples


def _syncs(folder: Path) -> list[float]:
    block = os.urandom(_BLOCK_BYTES)
    samples: list[float] = []
    deadline_s = perf_counter() + SYNC_LIMIT_S
    with tempfile.TemporaryFile(dir=folder) as file:
        while len(samples) < SYNCS and perf_counter() < deadline_s:
            began_s = perf_counter()
            os.write(file.fileno(), block)
            os.fdatasync(file.fileno())
            samples.append(perf_counter() - began_s)
    return samples


class _Echo(WSListener):
    came: Callable[[int, float], None]
    transport: WSTransport

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        now_s = perf_counter()
        if frame.msg_type == WSMsgType.TEXT:
            self.came(int(frame.get_payload_as_bytes()[:8]), now_s)


async def _echoes(url: str, seconds: float, roles: Callable[[], dict[int, str]]) -> tuple[list[float], Usage]:
    sockets: list[_Echo] = []
    for _ in range(ECHO_CONNECTIONS):
        _, listener = await ws_connect(_Echo, url)
        assert isinstance(listener, _Echo)
        sockets.append(listener)
    gc.collect()
    gc.disable()
    meter = Meter(roles)
    run = _EchoRun(sockets, Schedule(ECHO_PER_S, seconds))
    ticker = Ticker(1 / ECHO_PER_S, run.send_due)
    run.began_s = ticker.began_s
    try:
        await asyncio.sleep(seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.all_came.wait(), DRAIN_LIMIT_S)
    finally:
        ticker.stop()
        usage = meter.stop()
        gc.enable()
        for echo in sockets:
            echo.transport.disconnect(graceful=False)
    return run.samples, usage


class _EchoRun:
    def __init__(self, sockets: Sequence[_Echo], schedule: Schedule) -> None:
        self.sent = 0
        self.samples: list[float] = []
        self.all_came = asyncio.Event()
        self._sockets = sockets
        self._schedule = schedule
        for echo in sockets:
            echo.came = self._came
        self.began_s = perf_counter()

    def send_due(self) -> None:
        due = self._schedule.due(perf_counter() - self.began_s)
        for number in range(self.sent, due):
            self._sockets[number % len(self._sockets)].transport.send(WSMsgType.TEXT, b"%08d%s" % (number, _BODY))
        self.sent = max(self.sent, due)

    def _came(self, number: int, now_s: float) -> None:
        self.samples.append(now_s - self.began_s - self._schedule.at_s(number))
        if len(self.samples) == self._schedule.total:
            self.all_came.set()
