"""What the hosts say of themselves: their heartbeats, overheard on the broker and never answered."""

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from actors.placement import HEARTBEAT_S, HEARTBEAT_SUBJECT, Heartbeat
from deploy.settings import Settings
from domain.ids import PARTITIONS
from domain.ports import BrokerUnavailable, Received
from storage.broker import NatsBroker

CONNECT_LIMIT_S: Final = 2.0
FRESH_S: Final = 4 * HEARTBEAT_S
"""A host that has said nothing for this long is not counted among those that live."""
_decode: Final = msgspec.msgpack.Decoder(Heartbeat).decode

Beats = Mapping[str, Heartbeat]


class Census:
    """Listens to the hosts while it is open, as a context manager.

    Raises:
        BrokerUnavailable: NATS cannot be reached.
    """

    def __init__(self, settings: Settings) -> None:
        self._broker = NatsBroker(settings.url_of("nats_url", "census"), settings.namespace, "census", "census")
        self._heard_at: dict[str, tuple[float, Heartbeat]] = {}

    async def __aenter__(self) -> Self:
        await self._broker.start(CONNECT_LIMIT_S)
        await self._broker.subscribe(HEARTBEAT_SUBJECT, self._heard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._broker.close()

    def _heard(self, received: Received) -> None:
        beat = _decode(received.data)
        self._heard_at[beat.name] = (time.monotonic(), beat)

    def beats(self) -> Beats:
        """The last heartbeat of each host that lives, by its name."""
        since_s = time.monotonic() - FRESH_S
        return {name: beat for name, (at_s, beat) in sorted(self._heard_at.items()) if at_s >= since_s}

    async def until(self, true: Callable[[Beats], object], timeout_s: float) -> bool:
        """Whether it came true of the living hosts within the time."""
        deadline_s = time.monotonic() + timeout_s
        while not true(self.beats()):
            if time.monotonic() >= deadline_s:
                return False
            await asyncio.sleep(HEARTBEAT_S / 10)
        return True


def settled(beats: Beats) -> bool:
    """Whether the hosts own all partitions between them, each once, by the same table, and want to keep them."""
    owned = sum(beat.owned for beat in beats.values())
    tables = {beat.version for beat in beats.values()}
    return owned == PARTITIONS and len(tables) == 1 and not any(beat.leaving for beat in beats.values())


async def with_hosts(settings: Settings, processes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The processes, each host with what it says of itself; without it where it, or NATS, does not answer."""
    names = {process["name"] for process in processes if process["role"] == "host"}
    try:
        async with Census(settings) as census:
            await census.until(lambda beats: names <= beats.keys(), FRESH_S)
            beats = census.beats()
    except BrokerUnavailable:
        return processes
    return [process | _said(beats.get(process["name"])) for process in processes]


def _said(beat: Heartbeat | None) -> dict[str, Any]:
    if beat is None:
        return {}
    return {
        "incarnation": beat.incarnation,
        "partitions": beat.owned,
        "activations": beat.activations,
        "mailbox": beat.mailbox,
        "table_version": beat.version,
        "leaving": beat.leaving,
    }
