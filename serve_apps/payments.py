"""Paying a milestone, and what payment providers report of it: one road for the sandbox and for real rails."""

import hmac
import re
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from domain.commands import Accepted, Actor
from domain.errors import Code, Refusal, invalid
from domain.ids import derived_uuid7, uuid7_ms
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint
from serve_apps.integrations.sandbox import Charge, SandboxRail
from serve_apps.schemas.orders import Paid, PaymentEvent, PayRequest, Received

SIGNATURE_HEADER = "X-Signature"
_SIGNATURE = re.compile(rb"t=([0-9]{1,12}),v1=([0-9a-f]{64})")
_decode = msgspec.json.Decoder(PaymentEvent).decode

Deliver = Callable[[bytes, bytes], Awaitable[Accepted]]
"""Takes a webhook's signature and body to its receiver."""


@endpoint("POST", "/v1/orders/{order_id}/payments", tag="orders", rule=Rule.MEMBER, stream="order", keyed=True)
async def pay(call: Call, body: PayRequest, order_id: str) -> Paid:
    """Pay a milestone through a rail. The rail reports by webhook; the sandbox does so before this answers."""
    payment_id = body.id or call.write_id(None)
    if payment_id is None or body.rail != "sandbox" or not call.settings.sandbox_payments:
        await call.view("order", order_id)
        if payment_id is None:
            raise invalid("id", "required", "give the payment an id, or send the header Idempotency-Key")
        raise invalid("rail", "unknown", f"there is no rail {body.rail}")
    payload = {"payment_id": payment_id, "milestone": body.milestone, "rail": body.rail}
    accepted = await call.command("order", order_id, "start_payment", payment_id, payload)
    rail = SandboxRail(call.settings.webhook_secret, call.services.clock, partial(receive, call, "sandbox"))
    await rail.charge(await _asked(call, order_id, payment_id, accepted))
    funding = await _funding(call, order_id, payment_id)
    # A payment that the funding does not name came too late, and went back in full.
    return Paid(payment_id, funding["status"] if funding else "refunded", accepted.replayed)


async def _asked(call: Call, order_id: str, payment_id: str, accepted: Accepted) -> Charge:
    """What the order asks the rail to collect; the same in every repetition."""
    for event in accepted.events:
        data = msgspec.json.decode(event.data)
        if data["type"] == "order.payment_started":
            return Charge(order_id, payment_id, data["amount"], data["currency"])
    funding = await _funding(call, order_id, payment_id)
    if funding is None:
        raise Refusal(Code.CONFLICT, "this payment is over")
    return Charge(order_id, payment_id, funding["amount"], funding["currency"])


async def _funding(call: Call, order_id: str, payment_id: str) -> dict[str, Any] | None:
    """The order's funding that this payment makes, as the caller sees it."""
    order = msgspec.json.decode((await call.view("order", order_id)).body)
    return next((entry for entry in order["funding"] if entry.get("payment_id") == payment_id), None)


def verify(secret: bytes, signature: bytes, body: bytes, now_ms: int, tolerance_s: int) -> None:
    """Refusal `unauthenticated` unless the provider signed exactly this body within the last minutes."""
    match = _SIGNATURE.fullmatch(signature)
    if match is None:
        raise Refusal(Code.UNAUTHENTICATED, f"send a valid {SIGNATURE_HEADER}")
    expected = hmac.new(secret, match[1] + b"." + body, sha256).hexdigest().encode()
    if not hmac.compare_digest(expected, match[2]):
        raise Refusal(Code.UNAUTHENTICATED, "the signature does not belong to this body")
    if abs(now_ms // 1000 - int(match[1])) > tolerance_s:
        raise Refusal(Code.UNAUTHENTICATED, "the signature is too old, or of the future")


async def receive(call: Call, rail: str, signature: bytes, body: bytes) -> Accepted:
    """Take a provider's word to the order, exactly once per event id however often it comes.

    Raises:
        Refusal: `unauthenticated` for a bad signature, `invalid` for a bad body, and whatever the order says.
    """
    settings = call.settings
    verify(settings.webhook_secret, signature, body, call.now_ms(), settings.webhook_tolerance_s)
    try:
        event = _decode(body)
    except (ValueError, RecursionError) as error:
        raise invalid("", "malformed", "the body is not a payment event") from error
    news = event.data
    payload: dict[str, Any] = {"payment_id": news.payment_id, "psp_event_id": event.id}
    if event.type == "payment.held":
        name, payload = "deposit_held", payload | {"amount": news.amount, "currency": news.currency}
    else:
        name, payload = "deposit_failed", payload | {"reason": news.reason}
    command_id = derived_uuid7(uuid7_ms(news.payment_id) or 0, f"psp/{rail}/{event.id}", like=news.order_id)
    return await call.command_as(Actor("psp", rail), "order", news.order_id, name, command_id, payload)


@endpoint("POST", "/v1/webhooks/payments/sandbox", tag="webhooks", rule=Rule.SIGNED)
async def payment_webhook(call: Call, body: PaymentEvent) -> Received:
    """What the rail `sandbox` reports, signed in `X-Signature: t=<unix seconds>,v1=<HMAC-SHA256 of t.body>`."""
    if not call.settings.sandbox_payments:
        raise Refusal(Code.NOT_FOUND)
    signature = call.headers.get(SIGNATURE_HEADER.lower().encode(), b"")
    await receive(call, "sandbox", signature, await call.request.body())
    return Received(True)


ENDPOINTS: tuple[Endpoint, ...] = (pay, payment_webhook)
