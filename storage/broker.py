"""The broker on NATS: the only file that knows nats-py.

nats-py gives each subscription a task, a queue and 4.6 KiB, repairs a broken connection in place, and lets a PING overtake
what was published before it. Here one `_Link` is one connection that is never repaired, only replaced; the subscriptions
belong to the broker, which dispatches by subscription id straight from the reader. From nats-py come the handshake
(TLS, credentials), the parser and the stale-connection pings.
"""

import asyncio
import logging
import re
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError

from domain.ports import BrokerUnavailable, NoResponders, Received, RequestTimeout

MAX_MESSAGE_BYTES: Final = 512 * 1024
NATS_PY: Final = "2.16.0"
"""The version whose private seams `_Link` uses; a test compares it with the one that is installed."""

_CONNECT_TIMEOUT_S = 2
_CONFIRM_TIMEOUT_S = 5.0
_PING_INTERVAL_S = 2
_BACKOFF_S = (0.02, 1.0)
_FLUSH_AT_BYTES = 64 * 1024
_DRAIN_AT_BYTES = 1024 * 1024
_BUFFER_LIMIT_BYTES = 16 * 1024 * 1024
_DRAIN_TIMEOUT_S = 5.0

_INBOX: Final = "_INBOX"

_PUBLISHABLE = re.compile(r"[^\s.*>]+(?:\.[^\s.*>]+)*")
_SUBSCRIBABLE = re.compile(r"(?:[^\s.*>]+|\*)(?:\.(?:[^\s.*>]+|\*))*(?:\.>)?|>")

_SUBSCRIPTION_REFUSED = re.compile(r'permissions violation for subscription to "([^"]*)"')

_log = logging.getLogger(__name__)


def check_subject(subject: str, *, wildcards: bool = False) -> None:
    """Raises ValueError for what is not a subject: empty tokens, white space, or wildcards where none may be."""
    if (_SUBSCRIBABLE if wildcards else _PUBLISHABLE).fullmatch(subject) is None:
        raise ValueError(f"not a subject: {subject!r}")


def as_prefix(word: str) -> str:
    """What stands before every subject: the word with a dot, or nothing. Raises ValueError for what no subject may hold."""
    if word:
        check_subject(word.removesuffix("."))
    return f"{word.removesuffix('.')}." if word else ""


def inbox_of(role: str) -> str:
    """What answers to a role's requests are published below, before the platform's prefix."""
    return f"{_INBOX}.{role}." if role else f"{_INBOX}."


def check_message(data: bytes) -> None:
    """Raises ValueError for a message over 512 KiB."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(data)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")


def call_safely(handler: Callable[..., None], *arguments: object) -> None:
    """Call a handler; what it raises is logged and goes no further."""
    try:
        handler(*arguments)
    except Exception:
        _log.exception("a broker handler failed")


class _Link(Client):
    """One connection, from its handshake until it is lost. Nothing is buffered from one link to the next.

    Overrides four coroutines of nats-py 2.16.0: `_process_msg` (dispatch at once instead of a queue and a task),
    `_send_ping` and `_process_pong` (a PING takes its place behind what was published before, and nobody's giving up can
    disturb the reader), `_process_op_err` and `_process_err` (report the loss instead of reconnecting in place).
    """

    def __init__(self, deliver: Callable[[int, bytes, bytes, bytes, bytes | None], None]) -> None:
        super().__init__()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._deliver = deliver
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flush_due = False
        self._next_pong: asyncio.Future[None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._forbidden: str | None = None

    async def open(self, servers: list[str], name: str) -> None:
        """Connect to one of the servers. Raises BrokerUnavailable when none answers; the link is then of no use."""
        try:
            await self.connect(
                servers,
                name=name,
                error_cb=_log_error,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_TIMEOUT_S,
                ping_interval=_PING_INTERVAL_S,
            )
        except (OSError, NatsError, TimeoutError) as error:
            raise BrokerUnavailable(f"no NATS server answers: {error!r}") from error
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: self.lose("the reader ended"))
        self._writer.transport.set_write_buffer_limits(high=_DRAIN_AT_BYTES)

    async def dispose(self) -> None:
        """Cut the connection and end nats-py's tasks. Idempotent."""
        self.lose("closed")
        tasks = [t for t in (self._reading_task, self._ping_interval_task, self._flusher_task) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(self._transport, TcpTransport) and self._transport._io_writer is not None:
            self._writer.transport.abort()
            await asyncio.wait([asyncio.ensure_future(_closed(self._writer))], timeout=1.0)

    def lose(self, why: str) -> None:
        """From here on the link is of no use; everybody who waits on it is told."""
        if not self.lost.done():
            self.lost.set_result(why)
        waiting, self._waiting = self._waiting, deque()
        if self._next_pong is not None:
            waiting.append(self._next_pong)
            self._next_pong = None
        for future in waiting:
            if not future.done():
                future.set_exception(BrokerUnavailable(why))
                future.exception()  # a waiter that gave up must not leave "exception was never retrieved" behind

    def write(self, command: bytes) -> None:
        """Queue a command; all commands of one tick leave in one write. Raises BrokerUnavailable when far behind."""
        if self.lost.done():
            raise BrokerUnavailable(self.lost.result())
        if self.unsent_bytes > _BUFFER_LIMIT_BYTES:
            raise BrokerUnavailable(f"{self.unsent_bytes} bytes wait to be sent, the limit is {_BUFFER_LIMIT_BYTES}")
        self._out.append(command)
        self._out_bytes += len(command)
        if self._out_bytes >= _FLUSH_AT_BYTES:
            self._flush()
        elif not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._end_of_tick)

    @property
    def unsent_bytes(self) -> int:
        return self._out_bytes + int(self._writer.transport.get_write_buffer_size())

    async def drained(self) -> None:
        """Return when less than the pause threshold waits to be sent. Raises BrokerUnavailable after 5 s."""
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise BrokerUnavailable("the broker does not read what is sent") from error

    def pong(self) -> asyncio.Future[None]:
        """Done when the server has processed everything written so far. All who ask in one tick share one PING."""
        if self._next_pong is None:
            self._next_pong = asyncio.get_running_loop().create_future()
            try:
                self.write(b"")
            except BrokerUnavailable:
                self._next_pong = None
                raise
        return self._next_pong

    def _end_of_tick(self) -> None:
        self._flush_due = False
        if self.lost.done():
            return
        if self._next_pong is not None:
            self._waiting.append(self._next_pong)
            self._next_pong = None
            self._out.append(b"PING\r\n")
        self._flush()

    def _flush(self) -> None:
        if self._out:
            self._writer.write(b"".join(self._out))
            self._out.clear()
            self._out_bytes = 0

    @property
    def _writer(self) -> asyncio.StreamWriter:
        assert isinstance(self._transport, TcpTransport)
        assert self._transport._io_writer is not None
        return self._transport._io_writer

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._deliver(sid, subject, reply, data, headers)

    async def _send_ping(self, future: Any = None) -> None:
        try:
            self.pong()
        except BrokerUnavailable as error:
            _log.warning("no ping was sent: %s", error)  # it counts as unanswered; a few of them end the link

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        if self._waiting:
            self._waiting.popleft().set_result(None)

    async def _process_op_err(self, e: Exception) -> None:
        self.lose(repr(e))

    def forbids(self, subject: str) -> bool:
        """Whether the server's last refusal is of a subscription to this subject. Asked once, after a PONG."""
        forbidden, self._forbidden = self._forbidden, None
        return forbidden == subject.lower()  # nats-py has lowered what the server says

    async def _process_err(self, err_msg: str) -> None:
        _log.error("NATS says %s", err_msg)
        if refused := _SUBSCRIPTION_REFUSED.search(err_msg):
            self._forbidden = refused[1]
        if "permissions violation" not in err_msg and "invalid subject" not in err_msg:
            self.lose(err_msg)


class _NatsSubscription:
    """A line in the broker's table; `stop` is idempotent."""

    __slots__ = ("_broker", "handler", "sid", "subject")

    def __init__(self, broker: "NatsBroker", sid: int, subject: str, handler: Callable[[Received], None]) -> None:
        self._broker = broker
        self.sid = sid
        self.subject = subject
        self.handler = handler

    async def stop(self) -> None:
        await self._broker._unsubscribe(self)


class NatsBroker:
    """`ports.Broker` on NATS. One connection, four tasks, whatever the number of subscriptions.

    `url` may name several servers, separated by commas. Every subject gets `prefix` and a dot, so that two platforms can
    share a server. The connection is regained for ever; subscriptions come back with it, what was published meanwhile does not,
    and `on_reconnect` handlers are called after that. While there is no connection, everything raises
    `BrokerUnavailable` at once. A request that was under way when it broke raises it too: its outcome is unknown.

    `role` names whose permissions the URL's credentials have; answers come to inboxes of that role's. A subscription that
    the server does not permit raises `BrokerUnavailable` too. Answers are asked for below an inbox and nowhere else: what
    names another place is delivered as if it wanted none.
    """

    def __init__(self, url: str, prefix: str = "", name: str = "renoveasy", role: str = "") -> None:
        self._servers = [server.strip() for server in url.split(",")]
        self._prefix = as_prefix(prefix)
        self._name = name
        self._inbox = f"{self._prefix}{inbox_of(role)}{secrets.token_hex(11)}."
        self._inboxes = f"{self._prefix}{_INBOX}.".encode()
        self._subject_at = len(self._prefix)
        self._token_at = len(self._inbox)
        self._link: _Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._subscriptions: dict[int, _NatsSubscription] = {}
        self._inbox_sid = 0
        self._last_sid = 0
        self._requests: dict[int, asyncio.Future[bytes]] = {}
        self._last_request = 0
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_lost: list[Callable[[], None]] = []
        self._closed = False

    async def start(self, timeout_s: float = 10.0) -> "NatsBroker":
        """Connect, trying for that long. Raises BrokerUnavailable if no server answered by then."""
        connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(connected), name=f"broker {self._name}")
        try:
            async with asyncio.timeout(timeout_s):
                await connected
        except TimeoutError:
            await self.close()
            raise BrokerUnavailable(f"no NATS server at {self._where} answered in {timeout_s} s") from None
        return self

    async def publish(self, subject: str, data: bytes) -> None:
        link = self._send(subject, "", data)
        if link.unsent_bytes > _DRAIN_AT_BYTES:
            await link.drained()

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        self._last_request += 1
        token = self._last_request
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        self._requests[token] = answer
        deadline = loop.call_later(timeout_s, self._expire, token, subject, timeout_s)
        try:
            self._send(subject, f"{self._inbox}{token}", data)
            return await answer
        finally:
            deadline.cancel()
            self._requests.pop(token, None)
            if answer.done() and not answer.cancelled():
                answer.exception()

    async def subscribe(self, subject: str, handler: Callable[[Received], None]) -> _NatsSubscription:
        check_subject(subject, wildcards=True)
        link = self._connected()
        self._last_sid += 1
        subscription = _NatsSubscription(self, self._last_sid, subject, handler)
        self._subscriptions[subscription.sid] = subscription
        try:
            link.write(self._subscribe_command(subscription))
            await self._confirmed(link, _CONFIRM_TIMEOUT_S)
            if link.forbids(f"{self._prefix}{subject}"):
                raise BrokerUnavailable(f"these credentials do not permit to hear {subject}")
        except BaseException:
            self._forget(subscription)
            raise
        return subscription

    async def confirm(self, timeout_s: float = 2.0) -> None:
        await self._confirmed(self._connected(), timeout_s)

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._on_reconnect.append(handler)

    def on_lost(self, handler: Callable[[], None]) -> None:
        self._on_lost.append(handler)

    async def close(self) -> None:
        """Send what waits to be sent (for at most 1 s) and disconnect; nothing runs on afterwards. Idempotent."""
        if self._closed:
            return
        if self._link is not None:
            try:
                await self._confirmed(self._link, 1.0)
            except BrokerUnavailable as error:
                _log.warning("closed without knowing whether everything was sent: %s", error)
        self._closed = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    @property
    def connected(self) -> bool:
        return self._link is not None

    # --- the way out ---

    def _connected(self) -> _Link:
        if self._link is None:
            raise BrokerUnavailable("the broker is closed" if self._closed else f"no connection to {self._where}")
        return self._link

    def _send(self, subject: str, reply: str, data: bytes) -> _Link:
        check_subject(subject)
        check_message(data)
        link = self._connected()
        link.write(b"PUB %b %b %d\r\n%b\r\n" % (f"{self._prefix}{subject}".encode(), reply.encode(), len(data), data))
        return link

    async def _confirmed(self, link: _Link, timeout_s: float) -> None:
        pong = link.pong()
        done, _ = await asyncio.wait([pong], timeout=timeout_s)
        if not done:
            raise BrokerUnavailable(f"{self._where} did not answer in {timeout_s} s")
        pong.result()

    async def _unsubscribe(self, subscription: _NatsSubscription) -> None:
        link = self._link
        if self._forget(subscription) and link is not None:
            try:
                await self._confirmed(link, _CONFIRM_TIMEOUT_S)
            except BrokerUnavailable:
                _log.debug("%s was lost while a subscription ended, and the subscription with it", self._where)

    def _forget(self, subscription: _NatsSubscription) -> bool:
        known = self._subscriptions.pop(subscription.sid, None) is not None
        if known and self._link is not None and not self._link.lost.done():
            try:
                self._link.write(b"UNSUB %d\r\n" % subscription.sid)
            except BrokerUnavailable as error:
                self._link.lose(
                    str(error)
                )  # a full buffer: better a new connection than a subscription nobody knows of
        return known

    def _subscribe_command(self, subscription: _NatsSubscription) -> bytes:
        return f"SUB {self._prefix}{subscription.subject} {subscription.sid}\r\n".encode()

    # --- the way in ---

    def _deliver(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        if sid == self._inbox_sid:
            self._answered(subject, data, headers)
            return
        subscription = self._subscriptions.get(sid)
        if subscription is not None:
            # Else whoever may ask could have us publish, with our permissions, wherever it likes.
            answer_to = reply.decode()[self._subject_at :] if reply.startswith(self._inboxes) else ""
            call_safely(subscription.handler, Received(subject.decode()[self._subject_at :], data, answer_to))

    def _answered(self, subject: bytes, data: bytes, headers: bytes | None) -> None:
        token = subject[self._token_at :]
        answer = self._requests.get(int(token)) if token.isdigit() else None
        if answer is None or answer.done():
            return
        if headers is not None and headers.startswith(b"NATS/1.0 503"):
            answer.set_exception(NoResponders("nobody listens on the subject"))
        else:
            answer.set_result(data)

    def _expire(self, token: int, subject: str, timeout_s: float) -> None:
        answer = self._requests.get(token)
        if answer is not None and not answer.done():
            answer.set_exception(RequestTimeout(f"no answer from {subject} in {timeout_s} s"))

    # --- staying connected ---

    @property
    def _where(self) -> str:
        return ", ".join(server.rpartition("@")[2] for server in self._servers)

    async def _supervise(self, connected: "asyncio.Future[None]") -> None:
        """Hold one link at a time, for ever; the only place where links come and go."""
        backoff_s, last_backoff_s = _BACKOFF_S
        while True:
            link = _Link(self._deliver)
            try:
                await link.open(self._servers, self._name)
                await self._install(link)
                backoff_s = _BACKOFF_S[0]
                if connected.done():
                    _log.info("regained the connection to %s", self._where)
                    for handler in self._on_reconnect:
                        call_safely(handler)
                else:
                    connected.set_result(None)
                why = await link.lost
                _log.warning("lost the connection to %s: %s", self._where, why)
                for handler in self._on_lost:
                    call_safely(handler)
            except BrokerUnavailable as error:
                _log.warning("%s; trying again in %.2f s", error, backoff_s)
            finally:
                self._uninstall()
                await link.dispose()
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, last_backoff_s)

    async def _install(self, link: _Link) -> None:
        """Subscribe to everything on a new link, then let it be used."""
        self._last_sid += 1
        self._inbox_sid = self._last_sid
        link.write(f"SUB {self._inbox}* {self._inbox_sid}\r\n".encode())
        for subscription in self._subscriptions.values():
            link.write(self._subscribe_command(subscription))
        # No await so far: whoever subscribes from here on finds the link and speaks for themselves.
        self._link = link
        await self._confirmed(link, _CONFIRM_TIMEOUT_S)

    def _uninstall(self) -> None:
        self._link = None
        for answer in self._requests.values():
            if not answer.done():
                answer.set_exception(BrokerUnavailable("the connection was lost while an answer was awaited"))


async def _log_error(error: Exception) -> None:
    _log.debug("nats-py reports %r", error)


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except OSError as error:
        _log.debug("the connection had ended with %r", error)
