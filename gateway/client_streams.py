"""The streams a client follows: where each stands, and over which connections it comes. Pure.

With two connections, both bring every event; what counts is the offset. A connection's subscription begins at a position that
is known, and goes on without a hole: so whatever comes is known already or is the next.
"""

from collections.abc import Callable
from typing import Literal, Protocol

from gateway import codes
from gateway.client_effects import Effect, Ephemeral, Expelled, Published, Reload, Standing
from gateway.client_link import Kind, Link, Links
from gateway.client_settings import Pace
from gateway.client_wire import Ended, Frame, Position, Pub, Subscribed, subscribe

_RESUBSCRIBE_FROM = 2500
"""A server that ends a subscription with a code from here on invites the client to ask again."""


class Ask(Protocol):
    def __call__(self, link: Link, kind: Kind, key: str, name: str, body: object) -> None:
        """Send a command whose reply is waited for."""


class _Stream:
    """A followed channel. `position` is None until a subscription from now on has been answered."""

    __slots__ = ("attempts", "position", "state")

    def __init__(self, position: Position | None) -> None:
        self.position = position
        self.state: Literal["wanted", "parked", "reloading"] = "wanted"
        self.attempts = 0


class Streams:
    """Whatever is found out goes to `emit`, whatever is to be asked to `ask`."""

    def __init__(
        self, links: Links, pace: Pace, chance: Callable[[], float], emit: Callable[[Effect], None], ask: Ask
    ) -> None:
        self._links = links
        self._pace = pace
        self._chance = chance
        self._emit = emit
        self._ask = ask
        self._streams: dict[str, _Stream] = {}
        self._retries: dict[str, float] = {}

    def __contains__(self, channel: str) -> bool:
        return channel in self._streams

    def position(self, channel: str) -> Position | None:
        stream = self._streams.get(channel)
        return None if stream is None else stream.position

    def retry_s(self) -> float:
        """When `tick` has something to do."""
        return min(self._retries.values(), default=float("inf"))

    def tick(self, now_s: float) -> None:
        for channel in [channel for channel, due_s in self._retries.items() if due_s <= now_s]:
            del self._retries[channel]
            self._subscribe_everywhere(channel)

    def all_on(self, link: Link) -> bool:
        """Whether the connection brings everything that is wanted."""
        return all(name in link.standing for name, stream in self._streams.items() if stream.state == "wanted")

    # --- what the app wants --------------------------------------------------------------------------------------

    def follow(self, channel: str, position: Position | None) -> None:
        if channel not in self._streams:
            self._streams[channel] = _Stream(position)
            self._subscribe_everywhere(channel)

    def unfollow(self, channel: str) -> None:
        if self._streams.pop(channel, None) is not None:
            self._let_go(channel)

    def park(self, channel: str) -> None:
        stream = self._streams.get(channel)
        if stream is not None and stream.state == "wanted":
            stream.state = "parked"
            self._let_go(channel)

    def unpark(self, channel: str) -> None:
        stream = self._streams.get(channel)
        if stream is not None and stream.state == "parked":
            stream.state = "wanted"
            self._subscribe_everywhere(channel)

    def reloaded(self, channel: str, position: Position, now_s: float) -> None:
        stream = self._streams.get(channel)
        if stream is not None and stream.state == "reloading":
            stream.state, stream.position = "wanted", position
            if stream.attempts > 1:
                self._retry(channel, now_s)
            else:
                self._subscribe_everywhere(channel)

    # --- what the connections bring ------------------------------------------------------------------------------

    def attach(self, link: Link) -> None:
        """The connection is open, or has become the first one: have everything on it."""
        if link is self._links.main:
            self._retries.clear()
        for channel in self._streams:
            self._subscribe(link, channel)

    def answered(self, link: Link, channel: str, line: Frame, now_s: float) -> bool:
        """The reply to a subscription; False if it is not the protocol."""
        link.subscribing.discard(channel)
        stream = self._streams.get(channel)
        result, error = line.subscribe, line.error
        if stream is None or stream.state != "wanted":
            if result is not None:
                self._unsubscribe(link, channel)
        elif result is not None:
            self._subscribed(link, channel, stream, result, now_s)
        elif error is None:
            return False
        elif error.code == codes.UNRECOVERABLE_POSITION.code:
            self._reload(channel, stream)
        elif error.code == codes.ALREADY_SUBSCRIBED.code:
            self._unsubscribe(link, channel)
            self._retry(channel, now_s)
        elif error.retryable:
            self._retry(channel, now_s)
        else:
            self._expelled(channel, error.code, error.message)
        return True

    def published(self, link: Link, channel: str, pub: Pub, now_s: float) -> None:
        """Show what is next, drop what is known; behind a hole, ask for everything from here on."""
        stream = self._streams.get(channel)
        if stream is None or stream.position is None or channel not in link.standing:
            return
        if not pub.offset:
            self._emit(Ephemeral(channel, bytes(pub.data)))
        elif pub.offset == stream.position.offset + 1:
            stream.position = Position(stream.position.epoch, pub.offset)
            self._emit(Published(channel, pub.offset, bytes(pub.data)))
        elif pub.offset > stream.position.offset:
            self._unsubscribe(link, channel)
            self._retry(channel, now_s)

    def unsubscribed(self, link: Link, channel: str, why: Ended, now_s: float) -> None:
        """The server has ended a subscription."""
        if channel not in self._streams or channel not in link.standing:
            return
        link.standing.discard(channel)
        if why.code >= _RESUBSCRIBE_FROM:
            self._retry(channel, now_s)
        else:
            self._expelled(channel, why.code, why.reason)

    # --- inside --------------------------------------------------------------------------------------------------

    def _subscribe_everywhere(self, channel: str) -> None:
        for link in (self._links.main, self._links.heir):
            if link is not None:
                self._subscribe(link, channel)

    def _subscribe(self, link: Link, channel: str) -> None:
        """Unless it is there or on its way. Where following begins is for the first connection alone to say."""
        stream = self._streams.get(channel)
        if stream is None or stream.state != "wanted" or not link.open or channel in self._retries:
            return
        if stream.position is None and link is not self._links.main:
            return
        if channel not in link.standing and channel not in link.subscribing:
            link.subscribing.add(channel)
            self._ask(link, "subscribe", channel, "subscribe", subscribe(channel, stream.position))

    def _unsubscribe(self, link: Link, channel: str) -> None:
        link.standing.discard(channel)
        self._ask(link, "unsubscribe", channel, "unsubscribe", {"channel": channel})

    def _let_go(self, channel: str) -> None:
        """Where a subscription is on its way, it is undone when it has come."""
        self._retries.pop(channel, None)
        for link in self._links.all.values():
            if channel in link.standing:
                self._unsubscribe(link, channel)

    def _retry(self, channel: str, now_s: float) -> None:
        stream = self._streams[channel]
        stream.attempts += 1
        self._retries[channel] = now_s + self._pace.delay_s(stream.attempts, self._chance())

    def _subscribed(self, link: Link, channel: str, stream: _Stream, result: Subscribed, now_s: float) -> None:
        known = stream.position
        if known is None:
            stream.position = Position(result.epoch, result.offset)
        elif not result.recovered or known.epoch not in ("", result.epoch):
            self._unsubscribe(link, channel)
            return self._reload(channel, stream)
        else:
            stream.position = Position(result.epoch, known.offset)
        link.standing.add(channel)
        stream.attempts = 0
        self._emit(Standing(channel, stream.position))
        for pub in result.publications:
            self.published(link, channel, pub, now_s)
        return self._subscribe_everywhere(channel)

    def _reload(self, channel: str, stream: _Stream) -> None:
        stream.state = "reloading"
        stream.attempts += 1
        self._let_go(channel)
        self._emit(Reload(channel))

    def _expelled(self, channel: str, code: int, reason: str) -> None:
        del self._streams[channel]
        self._let_go(channel)
        self._emit(Expelled(channel, code, reason))
