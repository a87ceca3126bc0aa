"""One of the platform's parts as a plain process, without Ray: `python -m tests.support.part host host-0 FOLDER`, or forked
by `run_forked` from a process that has loaded everything already.

The part is the product's own, built from the environment's settings as Ray's actors build it. In `FOLDER` it leaves
`<name>.ready` (JSON: pid, identity, ports) once it works, `<name>.stats` whenever it gets SIGUSR1, and, a host, a line in
`<name>.commits` for every commit that the store has confirmed. SIGTERM ends it in an orderly way.

`PART_WIRING=module:function` names a function that is called with the role before the part is built: the place where tests
plant a bug into the wiring.
"""

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import uvloop

from deploy import gateway_part, host_part
from deploy.settings import Settings, from_environment
from domain.ports import Committed, Turn
from storage.partition_log import SqlPartitionLog

_PR_SET_PDEATHSIG = 1


class Numbers:
    """Stands in for `ray.util.metrics`, which outside of Ray would only load Ray: the last value, or the sum, per name."""

    values: ClassVar[dict[str, float]] = {}

    def __init__(self, name: str, description: str = "", tag_keys: Sequence[str] = ()) -> None:
        self._name = name.removeprefix("renoveasy_")

    def inc(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        key = f"{self._name}{{{tags['le']}}}" if tags and "le" in tags else self._name
        self.values[key] = self.values.get(key, 0.0) + value

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        self.values[self._name] = value


def without_ray_metrics() -> None:
    module = types.ModuleType("ray.util.metrics")
    module.Counter = module.Gauge = module.Histogram = Numbers  # type: ignore[attr-defined]
    sys.modules["ray.util.metrics"] = module


class JournalledLog(SqlPartitionLog):
    """The real log, which also writes down what it committed: evidence of who wrote a row, since rows do not say it.

    A `trap` stops the process at the worst moment there is: when it is about to commit something whose body has in it what
    the trap's file holds.
    """

    path: Path
    trap: Path
    incarnation = ""

    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        if self.trap.exists():
            bait = self.trap.read_bytes()
            if any(bait in entry.body for turn in turns for entry in turn.entries):
                self.trap.unlink()
                os.kill(os.getpid(), signal.SIGSTOP)
        committed = await super().commit(turns, heads)
        rows = {str(number): [heads[number] + 1, head] for number, head in committed.heads.items()}
        fenced = sorted(committed.fenced)
        line = json.dumps({"incarnation": self.incarnation, "at": time.time(), "rows": rows, "fenced": fenced})
        with self.path.open("a") as file:
            file.write(line + "\n")
        return committed


class RestPart:
    """The REST application behind uvicorn, which is what Serve's replicas run inside."""

    def __init__(self, settings: Settings, name: str) -> None:
        import uvicorn

        from deploy.rest_part import rest_application

        self.identity = f"{name}-{os.getpid()}"
        self._port = settings.http_port
        app = rest_application(settings)
        config = uvicorn.Config(app, settings.bind, settings.http_port, log_level="critical", access_log=False)
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> dict[str, int]:
        self._serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            if self._serving.done():
                raise RuntimeError("REST did not start") from self._serving.exception()
            await asyncio.sleep(0.01)
        return {"http": self._port}

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


def stats(identity: str) -> dict[str, Any]:
    """What only the process itself can count."""
    loop = asyncio.get_running_loop()
    return {
        "identity": identity,
        "tasks": len(asyncio.all_tasks(loop)),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        "fds": len(os.listdir("/proc/self/fd")),
        "metrics": dict(Numbers.values),
    }


def leave(path: Path, content: object) -> None:
    draft = path.with_suffix(f"{path.suffix}.draft")
    draft.write_text(json.dumps(content))
    draft.replace(path)


def builder(role: str) -> Callable[..., Any]:
    if role == "host":
        return host_part.HostPart
    if role == "placement":
        return host_part.PlacementPart
    if role == "gateway":
        return gateway_part.GatewayPart
    if role == "rest":
        return RestPart
    raise SystemExit(f"there is no part {role!r}")


async def live(role: str, name: str, folder: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    settings = from_environment()
    if role == "host":
        JournalledLog.path, JournalledLog.trap = folder / f"{name}.commits", folder / f"{name}.trap"
        host_part.SqlPartitionLog = JournalledLog  # type: ignore[misc]
    if wiring := os.environ.get("PART_WIRING"):
        module, _, function = wiring.partition(":")
        getattr(importlib.import_module(module), function)(role)
    part = builder(role)(settings, name)
    JournalledLog.incarnation = part.identity
    loop.add_signal_handler(signal.SIGUSR1, lambda: leave(folder / f"{name}.stats", stats(part.identity)))
    ports = await part.start()
    leave(folder / f"{name}.ready", {"pid": os.getpid(), "identity": part.identity, "ports": ports})
    await stop.wait()
    await part.stop()


def run(role: str, name: str, folder: Path) -> None:
    without_ray_metrics()
    uvloop.run(live(role, name, folder))


def run_forked(role: str, name: str, folder: str, environment: dict[str, str], out: str) -> None:
    """`run` in a child of multiprocessing's fork server: its environment and output are its own, and it dies with that."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    run(role, name, Path(folder))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
