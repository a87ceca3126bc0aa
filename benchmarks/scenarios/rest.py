"""B6, REST: how many requests a second 64 kept-alive connections get answered, each asking again as soon as it is answered.

A closed loop: the rate follows the server, and with it the latencies; a request that is late delays the next one on its
connection only. `live` is the no-op that the others are compared with.
"""

import asyncio
import gc
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Final

import msgspec
import uuid_utils

from benchmarks.figures import Latency, Usage, latency, per_thousand
from benchmarks.load.http import REQUEST_LIMIT_S, HttpConnection, HttpPool, request_bytes
from benchmarks.machine import Meter
from benchmarks.people import Person, conversations, new_order, orders
from benchmarks.target import Target

WARM_S: Final = 0.5
NEIGHBOURS: Final = 5
"""With how many others each user opens a conversation: lists have twice as many items."""
KINDS: Final = ("live", "order", "conversations", "message", "new_order")
DURABLE: Final = ("message", "new_order")
_TEXT: Final = "x" * 200


class RestStep(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of request in one round."""

    kind: str
    durable: bool
    connections: int
    seconds: float
    requests: int
    per_s: float
    latency: Latency | None
    statuses: dict[str, int]
    """How many answers of each status that was not expected."""
    usage: Usage
    server_cpu_s_per_1000: float | None
    faults: list[str]


class Rest:
    """Users with an order and conversations each, and connections of theirs."""

    def __init__(self, target: Target, people: Sequence[Person]) -> None:
        self._target = target
        self._people = people
        self._conversations: list[str] = []
        self._orders: list[str] = []

    async def prepare(self) -> None:
        """Raises HttpFailed."""
        count, neighbours = len(self._people), min(NEIGHBOURS, (len(self._people) - 1) // 2)
        pairs = [
            (person, self._people[(index + step) % count])
            for index, person in enumerate(self._people)
            for step in range(1, neighbours + 1)
        ]
        async with HttpPool(self._target.host, self._target.port) as http:
            self._conversations = (await conversations(http, pairs))[::neighbours]
            self._orders = await orders(http, self._people)

    def _requests(self, kind: str, index: int) -> Iterator[bytes]:
        """What connection `index` asks, one after the other."""
        host, token = f"{self._target.host}:{self._target.port}", self._people[index].token
        chat = f"/v1/conversations/{self._conversations[index]}/messages"
        match kind:
            case "live":
                return itertools.repeat(request_bytes("GET", "/health/live", host))
            case "order":
                return itertools.repeat(request_bytes("GET", f"/v1/orders/{self._orders[index]}", host, token))
            case "conversations":
                return itertools.repeat(request_bytes("GET", "/v1/conversations?limit=20", host, token))
            case "message":
                say = (_json({"id": str(uuid_utils.uuid7()), "text": _TEXT}) for _ in itertools.count())
                return (request_bytes("POST", chat, host, token, body) for body in say)
            case "new_order":
                make = (_json(new_order()) for _ in itertools.count())
                return (request_bytes("POST", "/v1/orders", host, token, body) for body in make)
        raise ValueError(kind)

    async def step(self, kind: str, seconds: float, tell: Callable[[str], None]) -> RestStep:
        """Raises HttpFailed where a connection is lost."""
        opened = [await HttpConnection.open(self._target.host, self._target.port) for _ in self._people]
        samples: list[float] = []
        others: dict[str, int] = {}
        asked = 0
        gc.collect()
        gc.disable()
        meter = Meter(self._target.roles)
        began_s = perf_counter()
        first_s, last_s = began_s + WARM_S, began_s + WARM_S + seconds

        async def ask(connection: HttpConnection, requests: Iterator[bytes]) -> None:
            nonlocal asked
            while (sent_s := perf_counter()) < last_s:
                status, _ = await connection.request(next(requests))
                now_s = perf_counter()
                asked += 1
                if not 200 <= status < 300:
                    others[str(status)] = others.get(str(status), 0) + 1
                elif first_s <= now_s <= last_s:
                    samples.append(now_s - sent_s)

        try:
            async with asyncio.timeout(WARM_S + seconds + REQUEST_LIMIT_S), asyncio.TaskGroup() as tasks:
                for index, connection in enumerate(opened):
                    tasks.create_task(ask(connection, self._requests(kind, index)))
                tell(f"{seconds + WARM_S:g} s")
        except* Exception as errors:
            raise errors.exceptions[0] from None
        finally:
            usage = meter.stop()
            gc.enable()
            for connection in opened:
                connection.close()
        faults = usage.faults() + [f"{count:,} answers {status}" for status, count in sorted(others.items())]
        return RestStep(
            kind=kind,
            durable=kind in DURABLE,
            connections=len(opened),
            seconds=seconds,
            requests=len(samples),
            per_s=round(len(samples) / seconds, 1),
            latency=latency(samples),
            statuses=others,
            usage=usage,
            server_cpu_s_per_1000=per_thousand(usage.servers_cpu_s, asked),
            faults=faults,
        )


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
