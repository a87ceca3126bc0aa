"""A host that hangs is ended by the identity of its process: that one alone, and only when it cannot be merely late."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.ending import HUNG_S, Ender, this_process
from deploy.runtime import TOKEN_KEY, start_of

TOKEN = "token-of-this-test"
NODE = "node-of-this-test"


class Sleeper:
    """A process that waits for input; `identity` is what it would call itself on `NODE`."""

    def __init__(self, token: str = TOKEN) -> None:
        environment = os.environ | {TOKEN_KEY: token}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.pid = self._process.pid
        self.identity = f"{NODE}/{self.pid}/{start_of(self.pid)}"

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        while "State:\tT" not in Path(f"/proc/{self.pid}/status").read_text():
            time.sleep(0.001)

    @property
    def ended_by(self) -> int | None:
        """The signal that ended it; None while it lives."""
        code = self._process.poll()
        return None if code is None else -code

    def wait(self) -> int:
        return -self._process.wait(5)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(5)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    made = Sleeper()
    yield made
    made.close()


@pytest.fixture
def ender() -> Ender:
    return Ender(NODE, TOKEN)


async def test_a_stopped_process_is_ended_at_once(sleeper: Sleeper, ender: Ender) -> None:
    sleeper.pause()
    assert await ender.end(sleeper.identity, 0.0)
    assert sleeper.wait() == signal.SIGKILL


async def test_a_running_process_may_only_be_late_and_is_ended_when_it_has_been_silent_for_long(
    sleeper: Sleeper, ender: Ender
) -> None:
    assert not await ender.end(sleeper.identity, HUNG_S - 0.1)
    assert sleeper.ended_by is None
    assert await ender.end(sleeper.identity, HUNG_S)
    assert sleeper.wait() == signal.SIGKILL


async def test_another_process_with_the_same_pid_is_left_alone(sleeper: Sleeper, ender: Ender) -> None:
    sleeper.pause()
    assert not await ender.end(f"{NODE}/{sleeper.pid}/{start_of(os.getpid())}", 99.0)
    assert sleeper.ended_by is None


async def test_a_process_of_another_platform_is_left_alone(ender: Ender) -> None:
    stranger = Sleeper("another token")
    try:
        stranger.pause()
        assert not await ender.end(stranger.identity, 99.0)
        assert stranger.ended_by is None
        assert await Ender(NODE, "").end(stranger.identity, 99.0), "without a token the start alone identifies it"
    finally:
        stranger.close()


async def test_nobody_ends_themselves_or_what_is_gone(sleeper: Sleeper) -> None:
    assert not await Ender("", "").end(this_process(), 99.0)
    identity = sleeper.identity
    sleeper.close()
    assert not await Ender(NODE, TOKEN).end(identity, 99.0)


@pytest.mark.parametrize("process", ["", "/", "//", f"{NODE}/-1/x", f"{NODE}/1/", f"{NODE}/0/x", "a/b/c/d", "/٣/x"])
async def test_what_names_no_process_ends_none(process: str, ender: Ender) -> None:
    assert not await ender.end(process, 99.0)


async def test_without_ray_there_is_no_other_node(sleeper: Sleeper) -> None:
    sleeper.pause()
    assert not await Ender("elsewhere", TOKEN).end(sleeper.identity, 99.0)
    assert sleeper.ended_by is None
