"""One connection of a client: what was asked on it and is not answered, and which channels stand on it. Pure."""

from typing import Final, Literal, NamedTuple

from gateway.client_wire import Connected, Write, command

Kind = Literal["connect", "refresh", "subscribe", "unsubscribe", "write", "question"]
_NEVER: Final = float("inf")


class Asked(NamedTuple):
    """A command that waits for its reply until `by_s`; `key` is a channel or a question's name."""

    kind: Kind
    key: str
    by_s: float
    write: Write | None = None


class Link:
    """A connection, from the dialling on. `number` names it."""

    __slots__ = ("_next_id", "_silence_s", "heard_by_s", "number", "opened_s", "pending", "refresh_s", "standing", "state",
                 "subscribing")  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.state: Literal["dialling", "connecting", "open"] = "dialling"
        self.pending: dict[int, Asked] = {}
        self.standing: set[str] = set()
        """Channels whose subscription is confirmed."""
        self.subscribing: set[str] = set()
        self.heard_by_s = _NEVER
        """When the connection is taken for dead unless something comes."""
        self.refresh_s = _NEVER
        self.opened_s = 0.0
        self._silence_s = _NEVER
        self._next_id = 0

    @property
    def open(self) -> bool:
        return self.state == "open"

    @property
    def deadline_s(self) -> float:
        """When something must be done about this connection at the latest."""
        first = next(iter(self.pending.values()), None)  # all wait equally long: the oldest is the first
        return min(self.heard_by_s, self.refresh_s, _NEVER if first is None else first.by_s)

    def ask(self, asked: Asked, name: str, body: object) -> bytes:
        """The frame of a command, whose reply is waited for from now on."""
        self._next_id += 1
        self.pending[self._next_id] = asked
        return command(self._next_id, name, body)

    def opened(self, result: Connected, now_s: float, silence_s: float) -> None:
        """The server knows who we are."""
        self.state, self.opened_s = "open", now_s
        self._silence_s = result.ping + silence_s if result.ping else _NEVER
        self.renewed(result.ttl if result.expires else 0, now_s)
        self.heard(now_s)

    def renewed(self, ttl_s: int, now_s: float) -> None:
        """The token is good for `ttl_s` seconds, 0 for ever. A fresh one is fetched a little before."""
        self.refresh_s = now_s + max(ttl_s - 10.0, ttl_s * 0.8) if ttl_s else _NEVER

    def heard(self, now_s: float) -> None:
        self.heard_by_s = now_s + self._silence_s

    def late(self, now_s: float) -> list[Asked]:
        """What has not been answered in time; a reply that comes still is ignored."""
        numbers = [number for number, asked in self.pending.items() if asked.by_s <= now_s]
        return [self.pending.pop(number) for number in numbers]


class Links:
    """A client's connections: the first one, the one that is to follow it, and all, with those that are being left."""

    __slots__ = ("all", "heir", "main")

    def __init__(self) -> None:
        self.all: dict[int, Link] = {}
        self.main: Link | None = None
        self.heir: Link | None = None
