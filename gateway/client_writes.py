"""A write as the app holds it: something to wait for."""

import asyncio
from collections.abc import Generator
from typing import Any, Generic, TypeVar

import msgspec

from domain.errors import Code, Refusal, invalid
from domain.wire import RPC_METHODS
from gateway.client_wire import MAX_DEPTH, MAX_FRAME_BYTES, Write, encode
from gateway.protocol import MalformedFrame, check_depth

T = TypeVar("T")
_ENVELOPE_BYTES = 1_024
_ENVELOPE_DEPTH = 4


class ClientEnded(Exception):
    """The client comes back no more: `code` and `reason` are the server's, or 0 and our own."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Pending(Generic[T]):
    """A write that will have its effect once. Await it for the platform's answer, or `stored` to know that it is safe.

    Awaiting raises `Refusal` if the platform says no, and `ClientEnded` if the client ends before there is an answer: then
    the write stays in the outbox. To stop waiting withdraws nothing.
    """

    def __init__(self, write: Write) -> None:
        self.write = write
        self.attempts = 0
        """How often it was sent when it was settled."""
        self._answered = asyncio.Event()
        self._stored = asyncio.Event()
        self._result: T | None = None
        self._error: Exception | None = None

    @property
    def id(self) -> str:
        return self.write.id

    @property
    def done(self) -> bool:
        return self._answered.is_set()

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        await self._answered.wait()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def stored(self) -> None:
        """Returns once no crash of this process or device can lose it; raises what awaiting it would."""
        await self._stored.wait()
        if self._error is not None:
            raise self._error

    # --- for the client ------------------------------------------------------------------------------------------

    def keep(self) -> None:
        self._stored.set()

    def settle(self, result: bytes | Exception, attempts: int = 0) -> None:
        try:
            if isinstance(result, Exception):
                raise result
            self._result = msgspec.json.decode(result, type=RPC_METHODS[self.write.method][1])  # type: ignore[assignment]
        except msgspec.MsgspecError as error:
            self._error = Refusal(Code.INTERNAL, f"the write has landed; its answer cannot be read: {error}")
        except Exception as error:
            self._error = error
        self.attempts = attempts
        self._stored.set()
        self._answered.set()


def write_of(method: str, stream: str, write_id: str, fields: dict[str, Any], watermark: int = 0) -> Write:
    """The write, as long as a gateway can take it: what it cannot would stand in the outbox's way for ever.

    Raises:
        Refusal: `payload_too_large` or `invalid`.
    """
    data = encode(fields)
    if len(data) > MAX_FRAME_BYTES - _ENVELOPE_BYTES:
        raise Refusal(Code.PAYLOAD_TOO_LARGE, f"{len(data)} bytes; a frame has at most {MAX_FRAME_BYTES}")
    try:
        check_depth(data, MAX_DEPTH - _ENVELOPE_DEPTH)
    except MalformedFrame:
        raise invalid("", "too_deep", f"a frame is nested {MAX_DEPTH} deep at most") from None
    return Write(write_id, stream, method, data, watermark)
