"""Vendors that are not there: what would be sent goes to the outbox, what would be paid is paid at once."""

import hmac
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import msgspec

from domain.commands import canonical_json
from domain.ports import Clock, Outbox


class SandboxSms:
    """Text messages that land in the outbox, where `/dev/outbox` shows them."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock

    async def send(self, phone: str, text: str, code: str | None) -> None:
        """Return when the message is in the outbox. Raises StoreUnavailable."""
        await self._outbox.add(phone, "sms", text, code, self._clock.now_ms())


class Charge(msgspec.Struct, frozen=True):
    """What a rail is asked to collect, in integer minor units."""

    order_id: str
    payment_id: str
    amount: int
    currency: str


def sign(secret: bytes, at_s: int, body: bytes) -> bytes:
    """The signature of a webhook's body at a Unix second."""
    digest = hmac.new(secret, b"%d." % at_s + body, sha256).hexdigest()
    return f"t={at_s},v1={digest}".encode()


class SandboxRail:
    """A payment provider without money. Its word takes the road of every provider's: a signed webhook.

    `deliver` takes the signature and the body to the webhook's receiver. Charging a payment again says the same again,
    under the same event id.
    """

    def __init__(self, secret: bytes, clock: Clock, deliver: Callable[[bytes, bytes], Awaitable[Any]]) -> None:
        self._secret = secret
        self._clock = clock
        self._deliver = deliver

    async def charge(self, charge: Charge) -> None:
        """Collect, report it, and return when the report has been taken. Raises what the receiver raises."""
        event = {
            "id": f"evt_{charge.payment_id}_held",
            "type": "payment.held",
            "data": msgspec.structs.asdict(charge),
        }
        body = canonical_json(event)
        await self._deliver(sign(self._secret, self._clock.now_ms() // 1000, body), body)
