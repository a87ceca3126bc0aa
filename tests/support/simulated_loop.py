"""Virtual time and simulated processes: one event loop that runs a whole cluster and never waits.

`VirtualLoop.time()` jumps to the next timer whenever nothing is ready. Every callback belongs to a `Process`; one that is
crashed never runs again, one that is paused runs everything late, as after SIGSTOP and SIGCONT. Within a process callbacks run
in the order that asyncio promises; between processes nothing is promised, and with a seed the order is drawn.

The idea is that of FoundationDB's simulation and TigerBeetle's VOPR: real code, and every source of chance behind one seed.
"""

import asyncio
import gc
import heapq
import random
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any, Final

CALLBACK_S: Final = 1e-6
"""Virtual time that a callback takes: even a loop that never waits gets on in time."""
BUSY: Final = 200_000
"""Callbacks within one virtual second that count as a livelock."""

_PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)


class Deadlock(Exception):
    """Nothing is ready and no timer is set: nothing will ever happen again."""


class Livelock(Exception):
    """Callbacks run without an end and hardly any time passes."""


class RealIO(Exception):
    """Something wanted a socket, a thread or another process."""


class Handle:
    """A callback that waits for its turn, as asyncio wants to hold it."""

    __slots__ = ("args", "callback", "context", "process")

    def __init__(self, process: "Process", callback: Callable[..., object], args: Any, context: Context) -> None:
        self.process = process
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None


class SimulatedTask(asyncio.Task[Any]):
    """A task whose hash does not depend on its address: sets of tasks are walked in the same order in every run."""

    __slots__ = ("_number", "home")
    _number: int
    home: "Process"

    def __hash__(self) -> int:
        return self._number


class Process:
    """One process of the simulated cluster: what runs in its context lives and dies with it."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.loop = loop
        self.name = name
        self.alive = True
        self.paused = False
        self.fuse = 0
        """Callbacks until `burnt` is called, once; 0 for no fuse."""
        self.burnt: Callable[[], None] | None = None
        self.context = copy_context()
        self.context.run(_PROCESS.set, self)
        self.ready: deque[Handle] = deque()
        self.listed = False
        self.keeps: list[Any] = []
        """What must not be collected while the simulation runs, so that a crashed process does not run its finalizers."""

    def call(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Run a callback in this process after a delay."""
        return self.loop.later(self, delay_s, callback, *args)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine as a task of this process."""
        return self.loop.create_task(work, context=self.context.copy())  # type: ignore[no-any-return]

    def crash(self) -> None:
        """All its tasks vanish where they are; nothing of it runs again, not even a `finally`."""
        self.alive = False
        self.keeps.extend(self.ready)
        self.ready.clear()

    def pause(self) -> None:
        """SIGSTOP: callbacks pile up."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: everything that piled up runs now, late."""
        self.paused = False
        if self.ready and not self.listed:
            self.loop.list(self)

    def light(self, callbacks: int, burnt: Callable[[], None]) -> None:
        """Call `burnt` between two callbacks of this process, after so many: a fault at any await."""
        self.fuse, self.burnt = max(1, callbacks), burnt

    def tasks(self) -> "list[asyncio.Task[Any]]":
        """Its unfinished tasks, by age."""
        found = [task for task in asyncio.all_tasks(self.loop) if task.home is self]  # type: ignore[attr-defined]
        return sorted(found, key=hash)


class VirtualLoop(asyncio.BaseEventLoop):
    """The event loop of a simulation. `seed` None keeps first-in-first-out order even between processes."""

    def __init__(self, seed: str | None = None) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, float, int, Handle]] = []
        self._runnable: list[Process] = []
        self._ties = random.Random(f"{seed}/ties").random if seed is not None else None
        self._chance = random.Random(f"{seed}/order").random if seed is not None else None
        self._numbers = count(1)
        self._disposed = False
        self._checked_at = 0.0
        self._check_next = BUSY
        self.callbacks = 0
        self.errors: list[str] = []
        """What reached the loop's exception handler."""
        self.root = Process(self, "simulation")
        self._current = self.root
        self.set_exception_handler(self._note)

    # --- what asyncio asks of a loop -----------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        if context is None:
            process = self._current
            handle = Handle(process, callback, args, process.context)
        else:
            process = context.get(_PROCESS) or self.root
            handle = Handle(process, callback, args, context)
        if process.alive and not self._disposed:
            process.ready.append(handle)
            if not (process.listed or process.paused):
                process.listed = True
                self._runnable.append(process)
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        process = self._current if context is None else context.get(_PROCESS) or self.root
        handle = Handle(process, callback, args, context or process.context)
        ties = self._ties
        heapq.heappush(self._timers, (when, ties() if ties is not None else 0.0, next(self._numbers), handle))
        return handle

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> Any:
        if self._disposed:
            coro.close()  # begun by a `finally` of what is being ended
        task = SimulatedTask.__new__(SimulatedTask)
        task._number = next(self._numbers)
        process = (context.get(_PROCESS) if context is not None else _PROCESS.get()) or self.root
        task.__init__(coro, loop=self, name=name or process.name, context=context)  # type: ignore[misc]
        task.home = process
        if self._disposed:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._disposed:
            error = context.get("exception")
            self.errors.append(f"{self._current.name}: {context['message']}: {error!r}")

    def _write_to_self(self) -> None:
        raise RealIO("another thread calls into the simulation")

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        raise RealIO("call_soon_threadsafe: there are no threads in the simulation")

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise RealIO("run_in_executor: there are no threads in the simulation")

    # --- what the simulation asks of it ----------------------------------------------------------------------------

    @property
    def current(self) -> Process:
        """Whose callback is running."""
        return self._current

    def process(self, name: str) -> Process:
        return Process(self, name)

    def later(self, process: Process, delay_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Run a callback in the context of that process: the only way from one process into another."""
        return self.at(process, self._now + delay_s, callback, *args)

    def at(self, process: Process, when_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """The same at a moment."""
        handle = Handle(process, callback, args, process.context)
        ties = self._ties
        heapq.heappush(self._timers, (when_s, ties() if ties is not None else 0.0, next(self._numbers), handle))
        return handle

    def list(self, process: Process) -> None:
        process.listed = True
        self._runnable.append(process)

    def _run_once(self) -> None:
        runnable, chance = self._runnable, self._chance
        timers = self._timers
        while not self._stopping:  # type: ignore[attr-defined]
            if timers and timers[0][0] <= self._now:
                self._expire()
            if not runnable:
                self._jump()
                continue
            if chance is None or len(runnable) == 1:
                process = runnable.pop(0)
            else:
                at = int(chance() * len(runnable))
                process = runnable[at]
                runnable[at] = runnable[-1]
                runnable.pop()
            process.listed = False
            if process.alive and not process.paused:
                self._run(process)

    def _run(self, process: Process) -> None:
        """One iteration of the process's event loop: everything that is ready now, and nothing that this makes ready."""
        self._current = process
        ready = process.ready
        amount = len(ready)
        if process.fuse:
            amount = min(amount, process.fuse)
            process.fuse -= amount
        for _ in range(amount):
            handle = ready.popleft()
            callback = handle.callback
            if callback is not None:
                try:
                    handle.context.run(callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"{callback!r} failed", "exception": error})
        self._now += amount * CALLBACK_S
        self.callbacks += amount
        self._current = self.root
        if self.callbacks >= self._check_next:
            self._check()
        if process.burnt is not None and not process.fuse:
            burnt, process.burnt = process.burnt, None
            burnt()
        if ready and not (process.listed or process.paused):
            self.list(process)

    def _check(self) -> None:
        if self._now - self._checked_at < 1.0:
            raise Livelock(f"{BUSY} callbacks in {self._now - self._checked_at:.3f} virtual seconds")
        self._check_next, self._checked_at = self.callbacks + BUSY, self._now

    def _expire(self) -> None:
        """Everything that is due goes to its process."""
        timers, now = self._timers, self._now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[3]
            process = handle.process
            if handle.callback is not None and process.alive:
                process.ready.append(handle)
                if not (process.listed or process.paused):
                    self.list(process)

    def _jump(self) -> None:
        """Nothing is ready: on to the next timer, and run it if it is the only one that is due."""
        timers = self._timers
        while timers:
            when_s, _, _, handle = heapq.heappop(timers)
            process = handle.process
            if handle.callback is not None and process.alive:
                break
        else:
            raise Deadlock("nothing is ready and no timer is set")
        if when_s > self._now:
            self._now = when_s
        process.ready.append(handle)
        if process.paused:
            return
        if timers and timers[0][0] <= self._now:
            self.list(process)
            self._expire()
        else:
            self._run(process)

    def dispose(self) -> None:
        """End what is left, crashed processes included, without letting it do anything; then close."""
        self._disposed = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what a `finally` begins is never awaited
            for task in sorted(asyncio.all_tasks(self), key=hash):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                try:
                    task.get_coro().close()  # type: ignore[union-attr]
                except (RuntimeError, ValueError):
                    continue  # it awaits something in a `finally`: a crashed process does not get that far
        self._timers.clear()
        self._runnable.clear()
        self.close()


# --- keeping reality out -----------------------------------------------------------------------------------------

_REAL: Final = frozenset(
    {
        "socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system",
        "os.fork", "os.posix_spawn",
    }
)  # fmt: skip
_sealed = False
_watching = False


def _watch(event: str, _: tuple[Any, ...]) -> None:
    if _sealed and event in _REAL:
        raise RealIO(event)


def _refuse(*_: Any) -> None:
    raise RealIO("a thread, or sleeping in one")


@contextmanager
def sealed() -> Iterator[None]:
    """Within, sockets, threads, processes and sleeping raise `RealIO`, and no garbage is collected behind our back."""
    global _sealed, _watching
    if not _watching:
        sys.addaudithook(_watch)
        _watching = True
    was_collecting = gc.isenabled()
    gc.disable()
    _sealed = True
    # These two raise no audit events in Python 3.11.
    start, sleep = threading._start_new_thread, time.sleep  # type: ignore[attr-defined]
    threading._start_new_thread = time.sleep = _refuse  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _sealed = False
        threading._start_new_thread, time.sleep = start, sleep  # type: ignore[attr-defined]
        if was_collecting:
            gc.enable()
