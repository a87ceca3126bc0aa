"""What a client may ask for: token buckets, of one session and of all sessions of one user on this gateway."""

from typing import Final, Generic, Protocol, TypeVar

from gateway.settings import GatewaySettings

BURST_S: Final = 4.0
"""Who has been quiet may spend this many seconds' worth at once."""


class Budget:
    """A token bucket. A rate of 0 is no limit."""

    __slots__ = ("_at_s", "_left", "_rate", "overdrawn")

    def __init__(self, rate: float, now_s: float) -> None:
        self._rate = rate
        self._left = rate * BURST_S
        self._at_s = now_s
        self.overdrawn = 0.0
        """How much was asked for in vain since something was granted last."""

    def spend(self, amount: float, now_s: float) -> bool:
        """Whether that much may be spent now. Who has anything left gets it, and pays the rest off before the next."""
        if not self._rate:
            return True
        self._left = min(self._rate * BURST_S, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left >= 1:
            self._left -= amount
            self.overdrawn = 0.0
            return True
        self.overdrawn += amount
        return False

    @property
    def abused(self) -> bool:
        """Whether it was asked for more than ten bursts in vain: the answers are not listened to."""
        return self.overdrawn > self._rate * BURST_S * 10


class Following(Protocol):
    """A session, as far as its user's share is concerned."""

    @property
    def following(self) -> int: ...


P = TypeVar("P", bound=Following)


class Share(Generic[P]):
    """What all connections of one user on this gateway share; `P` is a connection, the oldest first."""

    __slots__ = ("bytes", "commands", "peers")

    def __init__(self, settings: GatewaySettings, now_s: float) -> None:
        self.commands = Budget(settings.user_commands_per_s, now_s)
        self.bytes = Budget(settings.user_bytes_per_s, now_s)
        self.peers: dict[P, None] = {}

    @property
    def following(self) -> int:
        """How many subscriptions they have together."""
        return sum(peer.following for peer in self.peers)
