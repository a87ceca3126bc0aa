"""The simulation's own ground: virtual time, processes that crash and stop, and nothing of the real world."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from tests.support.simulated_loop import Deadlock, Livelock, RealIO, VirtualLoop, sealed


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop("seed")
    yield made
    made.dispose()


def run(loop: VirtualLoop, work: Coroutine[Any, Any, Any]) -> Any:
    with sealed():
        return loop.run_until_complete(work)


def test_an_hour_passes_in_no_time(loop: VirtualLoop) -> None:
    began = time.monotonic()
    run(loop, asyncio.sleep(3_600))
    assert 3_600 <= loop.time() < 3_601
    assert time.monotonic() - began < 1.0


def test_timers_fire_in_the_order_of_their_times(loop: VirtualLoop) -> None:
    fired: list[float] = []

    async def main() -> None:
        for delay in (0.3, 0.1, 0.2):
            loop.call_later(delay, fired.append, delay)
        loop.call_later(0.15, fired.append, "cancelled").cancel()
        await asyncio.sleep(1.0)

    run(loop, main())
    assert fired == [0.1, 0.2, 0.3]


def test_within_a_process_callbacks_keep_their_order_and_between_processes_the_seed_decides() -> None:
    def order(seed: str | None) -> list[str]:
        loop = VirtualLoop(seed)
        said: list[str] = []
        for name in "abc":
            process = loop.process(name)
            for number in range(3):
                process.call(0.0, lambda name=name, number=number: loop.call_soon(said.append, f"{name}{number}"))
        run(loop, asyncio.sleep(0.1))
        loop.dispose()
        return said

    found = {tuple(order(f"seed {n}")) for n in range(20)}
    assert len(found) > 1
    plain = VirtualLoop(None)
    said: list[int] = []

    async def main() -> None:
        for number in range(10):
            loop = asyncio.get_running_loop()
            loop.call_soon(said.append, number)
        await asyncio.sleep(0)

    run(plain, main())
    plain.dispose()
    assert said == list(range(10))


def test_a_crashed_process_does_nothing_more_not_even_its_finally(loop: VirtualLoop) -> None:
    done: list[str] = []
    process = loop.process("host")

    async def work() -> None:
        try:
            while True:
                done.append("beat")
                await asyncio.sleep(1.0)
        finally:
            done.append("finally")

    async def main() -> None:
        process.spawn(work())
        await asyncio.sleep(2.5)
        process.crash()
        await asyncio.sleep(10.0)

    run(loop, main())
    assert done == ["beat"] * 3
    loop.dispose()
    assert done[:4] == ["beat"] * 3 + ["finally"]  # only now, when nobody is there to see it


def test_a_fuse_burns_between_two_callbacks_of_its_process(loop: VirtualLoop) -> None:
    done: list[int] = []
    process = loop.process("host")

    async def work() -> None:
        for number in range(100):
            done.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        process.light(4, process.crash)
        process.spawn(work())
        await asyncio.sleep(1.0)

    run(loop, main())
    assert done == [0, 1, 2, 3]


def test_a_stopped_process_is_late_with_everything_and_then_does_it_in_order(loop: VirtualLoop) -> None:
    done: list[tuple[str, float]] = []
    process = loop.process("host")

    async def main() -> None:
        process.call(1.0, lambda: done.append(("first", loop.time())))
        process.call(2.0, lambda: done.append(("second", loop.time())))
        process.pause()
        await asyncio.sleep(5.0)
        assert done == []
        process.resume()
        await asyncio.sleep(1.0)

    run(loop, main())
    assert [name for name, _ in done] == ["first", "second"]
    assert all(5.0 <= at < 5.1 for _, at in done)


def test_a_result_set_by_one_process_wakes_the_task_of_another_in_its_own(loop: VirtualLoop) -> None:
    asker, answerer = loop.process("asker"), loop.process("answerer")
    woken: list[str] = []

    async def main() -> None:
        future: asyncio.Future[None] = loop.create_future()

        async def ask() -> None:
            await future
            woken.append("asker")

        asker.spawn(ask())
        await asyncio.sleep(0.1)
        asker.crash()
        answerer.call(0.0, future.set_result, None)
        await asyncio.sleep(0.1)

    run(loop, main())
    assert woken == []


def test_nothing_to_wait_for_is_a_deadlock(loop: VirtualLoop) -> None:
    async def main() -> None:
        await loop.create_future()

    with pytest.raises(Deadlock):
        run(loop, main())


def test_running_without_getting_anywhere_is_a_livelock(loop: VirtualLoop) -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        run(loop, main())


def test_sockets_threads_processes_and_sleeping_are_refused() -> None:
    with sealed():
        for real in (
            socket.socket,
            lambda: threading.Thread(target=print).start(),
            lambda: subprocess.Popen(["true"]),
            lambda: os.system("true"),
            lambda: time.sleep(0),
        ):
            with pytest.raises(RealIO):
                real()
    socket.socket().close()


def test_an_executor_is_refused(loop: VirtualLoop) -> None:
    async def main() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RealIO):
        run(loop, main())


def test_tasks_are_walked_in_the_order_in_which_they_were_made() -> None:
    def walked() -> list[str]:
        loop = VirtualLoop("seed")

        async def main() -> list[str]:
            tasks = {loop.create_task(asyncio.sleep(1), name=str(number)) for number in range(50)}
            names = [task.get_name() for task in tasks]
            await asyncio.wait(tasks)
            return names

        names: list[str] = run(loop, main())
        loop.dispose()
        return names

    padding = [object() for _ in range(10_000)]
    first = walked()
    del padding
    assert walked() == first
    assert sys.gettrace() is None or first
