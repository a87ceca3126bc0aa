"""The live activations of a host: made at first use, loaded in batches, gone when idle or beyond the caps."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from actors.activation import Activation, Item
from actors.background import Background
from actors.batcher import Batcher
from actors.group_commit import AWAY, FENCED
from actors.kinds import Kinds
from domain.channels import stream_partition
from domain.commands import Answer
from domain.errors import Code, Refused
from domain.ports import Clock, Loaded, Metrics, PartitionLog, StoreUnavailable

log = logging.getLogger(__name__)

NOTHING_S: Final = 1.0
"""For how long a stream that does not exist is remembered not to."""


class Residents(Mapping[str, Activation]):
    """Activations by stream, the least recently used first, and by partition."""

    def __init__(
        self,
        kinds: Kinds,
        partition_log: PartitionLog,
        clock: Clock,
        metrics: Metrics,
        background: Background,
        answer: Callable[[str, Answer], None],
        drain: Callable[[Activation], None],
    ) -> None:
        self._kinds = kinds
        self._log = partition_log
        self._clock = clock
        self._metrics = metrics
        self._background = background
        self._answer = answer
        self._drain = drain
        self._living: OrderedDict[str, Activation] = OrderedDict()
        self._in: dict[int, dict[str, Activation]] = {}
        self.waiting = 0
        """Items in all mailboxes."""
        self._loads: Batcher[str, Loaded] = Batcher(self._load_many)

    def __len__(self) -> int:
        return len(self._living)

    def __getitem__(self, stream: str) -> Activation:
        return self._living[stream]

    def __contains__(self, stream: object) -> bool:
        return stream in self._living

    def __iter__(self) -> Iterator[str]:
        return iter(self._living)

    async def close(self) -> None:
        await self._loads.close()

    # --- finding -------------------------------------------------------------------------------------------------

    def activate(self, stream: str, *, used: bool = True) -> Activation:
        """The activation, which begins to load if it is new; it is the most recently used one now, unless it is not `used`."""
        activation = self._living.get(stream)
        if activation is None:
            number = stream_partition(stream)
            kind = stream.partition(":")[0]
            activation = Activation(stream, number, self._kinds[kind], self._clock.monotonic_s())
            self._living[stream] = activation
            self._in.setdefault(number, {})[stream] = activation
            activation.loading = self._background.spawn(self._load(activation))
        elif used:
            self._living.move_to_end(stream)
            activation.last_used_s = self._clock.monotonic_s()
        return activation

    def find(self, stream: str) -> Activation | None:
        """The activation, if it is live and loaded."""
        activation = self._living.get(stream)
        return activation if activation is not None and activation.ready and not activation.dead else None

    def put(self, activation: Activation, item: Item) -> None:
        """Into its mailbox."""
        activation.mailbox.append(item)
        self.waiting += 1

    def take(self, activation: Activation) -> Item:
        """Out of its mailbox, which is not empty."""
        self.waiting -= 1
        return activation.mailbox.popleft()

    def living_in(self, partitions: Collection[int]) -> list[Activation]:
        return [activation for number in partitions for activation in self._in.get(number, {}).values()]

    def deepest(self) -> int:
        """The length of the longest mailbox."""
        return max((len(activation.mailbox) for activation in self._living.values()), default=0)

    # --- loading -------------------------------------------------------------------------------------------------

    async def _load(self, activation: Activation) -> None:
        began_s = self._clock.monotonic_s()
        try:
            loaded = await self._loads.get(activation.stream)
            if activation.dead:
                return
            activation.load(loaded or Loaded(None, []))
        except StoreUnavailable:
            self.forget(activation, AWAY)
            return
        except Exception:
            log.exception("could not load %s", activation.stream)
            self.forget(activation, Refused(Code.UNAVAILABLE, "the stream could not be loaded"))
            return
        self._metrics.observe("activation_seconds", self._clock.monotonic_s() - began_s)
        self._drain(activation)

    async def _load_many(self, streams: Sequence[str]) -> dict[str, Loaded]:
        self._metrics.count("activation_loads", len(streams))
        return await self._log.load(streams, {kind: rules.schema for kind, rules in self._kinds.items()})

    # --- going ---------------------------------------------------------------------------------------------------

    def forget(self, activation: Activation, answer: Refused = FENCED) -> None:
        """Throw the activation away; whoever waits for it is given the answer."""
        self._remove(activation)
        activation.dead = True
        while activation.mailbox:
            self._answer(self.take(activation).reply, answer)

    def evict(self, partition: int) -> None:
        for activation in list(self._in.get(partition, {}).values()):
            self.forget(activation)

    def _remove(self, activation: Activation) -> None:
        if self._living.get(activation.stream) is activation:
            del self._living[activation.stream]
            neighbours = self._in[activation.partition]
            del neighbours[activation.stream]
            if not neighbours:
                del self._in[activation.partition]

    def collect(
        self, idle_s: float, idle_over_s: float, most: int, most_bytes: int, store: Callable[[Activation], bool]
    ) -> None:
        """Drop what is idle (`idle_over_s`: what is over), and beyond the caps whatever was least recently used.

        Only what has an empty mailbox and nothing uncommitted goes; `store` writes what is worth it, and returns True
        where that must be waited for.
        """
        now_s = self._clock.monotonic_s()
        excess, bytes_left = len(self._living) - most, sum(a.bytes for a in self._living.values()) - most_bytes
        self._metrics.gauge("activations", len(self._living))
        self._metrics.gauge("activations_bytes", bytes_left + most_bytes)
        going: list[Activation] = []
        for activation in self._living.values():
            idle_for_s = now_s - activation.last_used_s
            crowded = excess > len(going) or bytes_left > 0
            if not crowded and idle_for_s <= min(idle_over_s, NOTHING_S):
                break
            if (crowded or idle_for_s > self._patience_s(activation, idle_s, idle_over_s)) and _is_quiet(activation):
                going.append(activation)
                bytes_left -= activation.bytes
        for activation in going:
            if not store(activation):
                self.forget(activation)
        self._metrics.count("deactivations", len(going))

    @staticmethod
    def _patience_s(activation: Activation, idle_s: float, idle_over_s: float) -> float:
        if not activation.version:
            return NOTHING_S
        return idle_over_s if activation.rules.is_over(activation.state) else idle_s


def _is_quiet(activation: Activation) -> bool:
    return activation.ready and not (activation.mailbox or activation.paused or activation.uncommitted)


def expired(item: Item, now_s: float) -> bool:
    """Whether nobody waits for the answer any more."""
    return item.until_s is not None and now_s > item.until_s
