"""A Ray of two nodes on this machine: what `deploy.ending` on one of them does about an actor on the other, as JSON.

To be run as a program of its own: Ray can be started only once in a process.
"""

import asyncio
import json
import os
import signal
import time
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.ending import HUNG_S, Ender, this_node, this_process

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
NOWHERE = "0" * 56


class Resident:
    """An actor that says which process it is."""

    def process(self) -> str:
        return this_process()


async def story(actor: Any) -> dict[str, Any]:
    process = await actor.process.remote()
    pid = int(process.split("/")[1])
    ender = Ender(this_node(), "a token that the other node does not know")
    told: dict[str, Any] = {
        "elsewhere": process.split("/")[0] != this_node(),
        "late": await ender.end(process, HUNG_S / 2),
        "unknown node": await ender.end(f"{NOWHERE}/{pid}/x", 99.0),
        "another start": await ender.end(f"{process}0", 99.0),
    }
    os.kill(pid, signal.SIGSTOP)
    told["stopped"] = await ender.end(process, 0.0)
    told["again"] = await ender.end(process, 0.0)
    told["started anew"] = await fresh(actor, process)
    return told


async def fresh(actor: Any, former: str) -> bool:
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        try:
            if await actor.process.remote() != former:
                return True
        except ray.exceptions.RayActorError:
            pass
        await asyncio.sleep(0.2)
    return False


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        other = cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        there = NodeAffinitySchedulingStrategy(other.node_id, soft=False)
        actor = ray.remote(Resident).options(num_cpus=0, max_restarts=-1, scheduling_strategy=there).remote()
        print(json.dumps(asyncio.run(story(actor))))
    finally:
        ray.shutdown()
        cluster.shutdown()
