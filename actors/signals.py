"""The lossy road: typing and fixes. Checked, conflated, published without an offset, never answered."""

from typing import Final

import msgspec

from actors.activation import Activation
from actors.relay import Relay
from domain.chat import typing
from domain.commands import Publication, Signal
from domain.errors import Refusal
from domain.orders import ORDERS
from domain.ports import Clock, Metrics, OutcomeUnknown, Position, ReadModels, StoreUnavailable
from domain.tracking import Track

_ORDERS: Final = 10_000
"""Orders whose sampled positions may wait to be stored; positions of more are lost."""


class Signals:
    """What the streams of one host say and hear in passing."""

    def __init__(self, relay: Relay, read_models: ReadModels, clock: Clock, metrics: Metrics) -> None:
        self._relay = relay
        self._read_models = read_models
        self._clock = clock
        self._metrics = metrics
        self._positions: dict[str, list[Position]] = {}

    def take(self, activation: Activation, signal: Signal, owner: int) -> None:
        """Pass it on, if who sent it may; `owner` is the takeover position under which the host speaks."""
        if not activation.version or not activation.rules.may_signal(activation.state, signal.actor, signal.name):
            self._metrics.count("signals_refused")
            return
        try:
            if signal.name == "typing":
                data: bytes | None = typing(signal.actor, signal.payload)
            else:
                data = self._follow(activation, signal)
        except (msgspec.DecodeError, Refusal):
            self._metrics.count("signals_refused")
            return
        if data is not None:
            self._relay.ephemeral(activation.stream, owner, Publication(0, data))

    def _follow(self, activation: Activation, signal: Signal) -> bytes | None:
        activation.track = activation.track or Track()
        data, kept = ORDERS.signal(
            activation.state, activation.track, signal.actor, signal.name, signal.payload, self._clock.now_ms()
        )
        if kept and len(self._positions) < _ORDERS:
            self._positions.setdefault(signal.stream_id, []).extend(kept)
        return data

    async def store(self) -> None:
        """Store the sampled positions; those that the store does not take are lost."""
        kept, self._positions = self._positions, {}
        for order_id, positions in kept.items():
            try:
                await self._read_models.add_positions(order_id, positions)
            except (StoreUnavailable, OutcomeUnknown):
                self._metrics.count("positions_lost", len(positions))
