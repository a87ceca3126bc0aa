"""Writers to SQLite take turns, within a process and between processes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domain.ports import StoreUnavailable
from storage.turnstile import Turnstile

HOLD = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


async def test_tasks_and_processes_are_inside_one_at_a_time(tmp_path: Path) -> None:
    turnstiles = [Turnstile(str(tmp_path / "turn"), 5.0) for _ in range(3)]  # three descriptors: as three processes
    inside: list[int] = []
    most = 0

    async def write(number: int) -> None:
        nonlocal most
        async with turnstiles[number % 3]:
            inside.append(number)
            most = max(most, len(inside))
            await asyncio.sleep(0.001)
            inside.remove(number)

    await asyncio.gather(*(write(number) for number in range(60)))
    assert most == 1
    for turnstile in turnstiles:
        turnstile.close()


async def test_who_waits_too_long_is_told_and_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "turn")
    turnstile = Turnstile(path, 0.1)
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreUnavailable):
            async with turnstile:
                pytest.fail("two are inside")
        os.kill(holder.pid, signal.SIGKILL)
    async with turnstile:
        pass
    turnstile.close()


async def test_a_turn_that_fails_or_is_cancelled_is_given_back(tmp_path: Path) -> None:
    turnstile, other = (Turnstile(str(tmp_path / "turn"), 0.2) for _ in range(2))
    with pytest.raises(ZeroDivisionError):
        async with turnstile:
            _ = 1 / 0
    async with other:
        waiting = asyncio.create_task(turnstile.__aenter__())
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with turnstile:
        pass
    turnstile.close()
    other.close()


async def test_a_lock_that_cannot_be_opened_is_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        async with Turnstile(str(tmp_path / "nowhere" / "turn"), 0.1):
            pytest.fail("inside nowhere")


async def test_many_who_wait_for_one_that_does_not_let_go_are_all_told_in_time(tmp_path: Path) -> None:
    path = str(tmp_path / "turn")
    waiting, paused = Turnstile(path, 0.2), Turnstile(path, 0.2)

    async def write() -> None:
        async with waiting:
            pytest.fail("two are inside")

    async with paused:
        began_s = time.monotonic()
        outcomes = await asyncio.gather(*(write() for _ in range(20)), return_exceptions=True)
        took_s = time.monotonic() - began_s
    assert [outcome for outcome in outcomes if not isinstance(outcome, StoreUnavailable)] == []
    assert took_s < 1.0
    async with waiting:
        pass
    waiting.close()
    paused.close()
