"""A followed stream as the app sees it: its view, its position, and whoever waits for its changes."""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from gateway.client_store import Place
from gateway.client_wire import BEGINNING, Position

_MAX_ITEMS: Final = 256
_MAX_BYTES: Final = 1_048_576
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Folding(NamedTuple):
    """How events become a view. `encode` and `decode` keep it on the device; `version` says that an older one is of no use.

    Without `encode` the view is made anew from the stream's beginning whenever the client starts.
    """

    initial: Callable[[str], Any]
    """The view of a stream (its id) in which nothing has happened."""
    fold: Callable[[Any, int, bytes], Any]
    """The view after one more event: (view, offset, publication data) → view."""
    encode: Callable[[Any], bytes] | None = None
    decode: Callable[[bytes], Any] | None = None
    version: int = 1


class Loaded(NamedTuple):
    """A stream as it was loaded from elsewhere: everything up to `position` is in the view."""

    position: Position
    view: Any = None


class Change(msgspec.Struct, frozen=True):
    """Something new on a channel. `offset` 0: ephemeral. `reloaded`: what was known is void, and all begins anew."""

    offset: int = 0
    data: bytes = b"{}"
    reloaded: bool = False

    @property
    def event(self) -> dict[str, Any]:
        """The publication's data."""
        return _decode(self.data)


class StreamLost(Exception):
    """The stream is not followed any more: the user is no member, or there is no such stream."""

    def __init__(self, channel: str, code: int, reason: str) -> None:
        super().__init__(f"{channel}: {code} {reason}")
        self.code = code
        self.reason = reason


class Done:
    """The last offset that a consumer has done with; outlives the consumer."""

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset = offset


class Changes:
    """What happens on a channel, one after the other; ends with the exception that ends the subscription.

    A change counts as taken when the next one is asked for. Who does not ask makes the client stop reading, and then let go
    of this stream until there is room again: nothing is lost, and nothing piles up.
    """

    def __init__(self, feed: "Feed") -> None:
        self._feed = feed
        self._queue: deque[Change] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._handed = feed.position.offset if feed.position else 0
        self.done = Done(self._handed)

    def __aiter__(self) -> "Changes":
        return self

    async def __anext__(self) -> Change:
        self.done.offset = self._handed
        self._feed.taken()
        while not self._queue:
            if self._feed.ended is not None:
                raise self._feed.ended
            self._news.clear()
            await self._news.wait()
        change = self._queue.popleft()
        self._bytes -= len(change.data)
        if change.offset or change.reloaded:
            self._handed = change.offset
        if self.low:
            self._feed.room()
        return change

    @property
    def taken(self) -> int:
        """The offset up to which the consumer has done with everything; in the beginning, where it begins."""
        return self.done.offset

    @property
    def full(self) -> bool:
        return len(self._queue) >= _MAX_ITEMS or self._bytes >= _MAX_BYTES

    @property
    def low(self) -> bool:
        return len(self._queue) <= _MAX_ITEMS // 4 and self._bytes <= _MAX_BYTES // 4

    def push(self, change: Change) -> None:
        if change.offset or change.reloaded or not self.full:
            self._queue.append(change)
            self._bytes += len(change.data)
            self._news.set()

    def start(self, offset: int) -> None:
        """Where it begins is known only now."""
        self.done.offset = self._handed = offset

    def wake(self) -> None:
        self._news.set()


class Feed:
    """One followed channel of one client. `dirty` and `roomy` tell the client that the place has moved, that there is room."""

    def __init__(
        self, channel: str, folding: Folding | None, position: Position | None, kept: Place | None,
        dirty: Callable[["Feed"], None], roomy: Callable[["Feed"], None],
    ) -> None:  # fmt: skip
        self.channel = channel
        self.view: Any = None
        self.position = position
        self.ended: Exception | None = None
        self.parked = False
        self.reloads = 0
        """How often what was known had to be given up."""
        self.standing = asyncio.Event()
        self._folding = folding
        self._dirty = dirty
        self._roomy = roomy
        self._listeners: dict[weakref.ref[Changes], Done] = {}
        self._left_at: int | None = None
        if folding is not None:
            self._begin(folding, kept)
        elif position is None and kept is not None:
            self.position = kept.position

    def _begin(self, folding: Folding, kept: Place | None) -> None:
        self.position, self.view = BEGINNING, folding.initial(self._id)
        if kept is not None and kept.view is not None and folding.decode and kept.version == folding.version:
            self.position, self.view = kept.position, folding.decode(kept.view)

    @property
    def _id(self) -> str:
        return self.channel.partition(":")[2]

    def changes(self) -> Changes:
        """From the present position on, until it is dropped."""
        changes = Changes(self)
        self._listeners[weakref.ref(changes, self._listener_gone)] = changes.done
        return changes

    @property
    def full(self) -> bool:
        """Whether somebody does not keep up."""
        return any(listener.full for listener in self._listening())

    def place(self) -> Place | None:
        """What is to be kept: with a view, the view; without, how far every consumer has got."""
        position = self.position
        if position is None:
            return None
        if self._folding is None:
            left_at = position.offset if self._left_at is None else self._left_at
            taken = min((done.offset for done in self._listeners.values()), default=left_at)
            return Place(Position(position.epoch, min(taken, position.offset)))
        if self._folding.encode is None:
            return None
        return Place(position, self._folding.version, self._folding.encode(self.view))

    # --- what the client brings ----------------------------------------------------------------------------------

    def stands(self, position: Position) -> None:
        """The subscription is there; this is where it goes on."""
        first = self.position is None
        self.position = position
        for listener in self._listening() if first else ():
            listener.start(position.offset)
        self.standing.set()
        self._dirty(self)

    def published(self, offset: int, data: bytes) -> None:
        assert self.position is not None
        if self._folding is not None:
            self.view = self._folding.fold(self.view, offset, data)
        self.position = Position(self.position.epoch, offset)
        self._tell(Change(offset, data))
        self._dirty(self)

    def ephemeral(self, data: bytes) -> None:
        self._tell(Change(0, data))

    def reloaded(self, loaded: Loaded | None) -> Position:
        """All is void; where to go on. Without anything loaded that is the stream's beginning."""
        if loaded is None:
            loaded = Loaded(BEGINNING, self._folding.initial(self._id) if self._folding else None)
        self.reloads += 1
        self.position, self.view = loaded.position, loaded.view
        self._tell(Change(loaded.position.offset, reloaded=True))
        self._dirty(self)
        return loaded.position

    def end(self, why: Exception) -> None:
        if self.ended is None:
            self.ended = why
            self.standing.set()
            for listener in self._listening():
                listener.wake()

    # --- what the consumers bring --------------------------------------------------------------------------------

    def taken(self) -> None:
        if self._folding is None:
            self._dirty(self)

    def room(self) -> None:
        if not self.full:
            self._roomy(self)

    def _listening(self) -> list[Changes]:
        return [listener for reference in self._listeners if (listener := reference()) is not None]

    def _listener_gone(self, reference: "weakref.ref[Changes]") -> None:
        """What nobody has read any more is had again by the next process."""
        self._left_at = self._listeners.pop(reference).offset
        self.room()

    def _tell(self, change: Change) -> None:
        for listener in self._listening():
            listener.push(change)
