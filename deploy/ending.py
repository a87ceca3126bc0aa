"""Ending the process of a host that hangs or is stopped: exactly that process, wherever it runs, and no other.

A process is named by its Ray node, its pid and its start (`deploy.runtime.start_of`): a pid alone may be somebody else's
by now. Without Ray the node is empty and means this machine.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

from deploy.runtime import TOKEN_KEY, start_of

HUNG_S: Final = 2.5
"""A process that runs and says nothing is ended after this long: on a busy machine it may only be late."""
REMOTE_LIMIT_S: Final = 5.0

log = logging.getLogger(__name__)


def this_node() -> str:
    """Ray's id of the node that this process runs on; empty outside of Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return str(ray.get_runtime_context().get_node_id())


def this_start() -> str:
    """The token of the platform's start that this process belongs to; empty where there is none."""
    return os.environ.get(TOKEN_KEY, "")


def this_process() -> str:
    """What `Ender.end` will know this process by."""
    return f"{this_node()}/{os.getpid()}/{start_of(os.getpid())}"


def end_here(pid: int, started: str, silent_s: float, token: str) -> bool:
    """SIGKILL the process of this machine, if it is still the same one, of this platform, and stopped or silent for long.

    `token` is that of the platform's start, empty where there is none.
    """
    if pid == os.getpid() or not started or not hasattr(os, "pidfd_open"):
        return False
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            # From here on the descriptor is that process, or a dead one: it cannot become another one's.
            ours = start_of(pid) == started and (not token or _token_of(pid) == token)
            if ours and (_is_stopped(pid) or silent_s >= HUNG_S):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                return True
        finally:
            os.close(process)
    return False


def _token_of(pid: int) -> str:
    mark = f"{TOKEN_KEY}=".encode()
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((value.removeprefix(mark).decode() for value in variables if value.startswith(mark)), "")


def _is_stopped(pid: int) -> bool:
    """Stopped by a signal or held by a debugger: it cannot even notice that it is late."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"


class Ender:
    """Ends processes on this node, and on others by a Ray task that is pinned there."""

    def __init__(self, node: str, token: str) -> None:
        """`node` is the one that this process runs on, `token` that of the platform's start, empty where there is none."""
        self._node = node
        self._token = token

    async def end(self, process: str, silent_s: float) -> bool:
        """Whether the process has been killed just now. Never raises; False also for what it cannot identify."""
        node, _, rest = process.partition("/")
        pid, _, started = rest.partition("/")
        if not pid.isdecimal():
            return False
        try:
            if node == self._node:
                ended = await asyncio.to_thread(end_here, int(pid), started, silent_s, self._token)
            else:
                ended = await self._end_there(node, int(pid), started, silent_s)
        except Exception as error:
            log.warning("the process %s could not be ended: %r", process, error)
            return False
        if ended:
            log.warning("the process %s was silent for %.1f s and has been killed", process, silent_s)
        return ended

    async def _end_there(self, node: str, pid: int, started: str, silent_s: float) -> bool:
        if not this_node():
            return False  # outside of Ray there is no other node; asking for one would start a Ray
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        pinned = ray.remote(end_here).options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        )
        async with asyncio.timeout(REMOTE_LIMIT_S):
            # A node that joined from elsewhere does not know this start's token; its own id tells as much.
            return bool(await pinned.remote(pid, started, silent_s, ""))
