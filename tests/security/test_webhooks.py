"""SEC-21: what a payment provider says counts once, and only if it is signed for exactly these bytes, just now.

The receiver is the one route that takes no token. Whatever is wrong with the signature is answered alike, and the order is as
it was.
"""

import asyncio
import base64
import gzip
import hmac
import json
from collections.abc import Callable
from hashlib import sha1, sha256, sha512
from typing import Any, Final

import pytest

from domain.access import Role
from domain.commands import Actor, Command
from serve_apps.integrations.sandbox import sign
from tests.security.city import Answer, City
from tests.security.tally import Tally

PATH: Final = "/v1/webhooks/payments/sandbox"
KEY: Final = b"w" * 32
"""The secret of the city's settings."""


def plain(at_s: int, body: bytes, how: Any = sha256, key: bytes = KEY) -> str:
    return hmac.new(key, b"%d." % at_s + body, how).hexdigest()


Maker = Callable[[int, bytes], bytes]

WRONG: Final[dict[str, tuple[str, Maker]]] = {
    "missing": ("no signature", lambda at, body: b""),
    "a blank": ("no signature", lambda at, body: b" "),
    "none": ("no signature", lambda at, body: b"none"),
    "only a time": ("no signature", lambda at, body: b"t=%d" % at),
    "only a signature": ("no signature", lambda at, body: b"v1=" + plain(at, body).encode()),
    "an empty signature": ("no signature", lambda at, body: b"t=%d,v1=" % at),
    "another key": ("another key", lambda at, body: sign(b"x" * 32, at, body)),
    "an empty key": ("another key", lambda at, body: sign(b"", at, body)),
    "a key of zeros": ("another key", lambda at, body: sign(b"\0" * 32, at, body)),
    "the key's text cut": ("another key", lambda at, body: sign(KEY[:31], at, body)),
    "no key at all": ("another key", lambda at, body: b"t=%d,v1=%b" % (at, sha256(body).hexdigest().encode())),
    "the body without its time": (
        "another key",
        lambda at, body: b"t=%d,v1=%b" % (at, hmac.new(KEY, body, sha256).hexdigest().encode()),
    ),
    "SHA-1": ("another algorithm", lambda at, body: b"t=%d,v1=%b" % (at, plain(at, body, sha1).encode())),
    "SHA-512": ("another algorithm", lambda at, body: b"t=%d,v1=%b" % (at, plain(at, body, sha512).encode())),
    "SHA-512 cut": ("another algorithm", lambda at, body: b"t=%d,v1=%b" % (at, plain(at, body, sha512)[:64].encode())),
    "another version": ("another algorithm", lambda at, body: sign(KEY, at, body).replace(b"v1", b"v0")),
    "a second version": ("another algorithm", lambda at, body: sign(KEY, at, body).replace(b"v1=", b"v0=0,v1=")),
    "one bit": ("a changed signature", lambda at, body: _flip(sign(KEY, at, body))),
    "capitals": ("a changed signature", lambda at, body: b"t=%d,v1=%b" % (at, plain(at, body).upper().encode())),
    "cut": ("a changed signature", lambda at, body: sign(KEY, at, body)[:-1]),
    "longer": ("a changed signature", lambda at, body: sign(KEY, at, body) + b"0"),
    "base64": (
        "a changed signature",
        lambda at, body: b"t=%d,v1=" % at + base64.b64encode(hmac.digest(KEY, b"%d." % at + body, "sha256")),
    ),
    "a blank inside": ("a changed signature", lambda at, body: sign(KEY, at, body).replace(b",", b", ")),
    "the other order": ("a changed signature", lambda at, body: b",".join(sign(KEY, at, body).split(b",")[::-1])),
    "twice in one": ("a changed signature", lambda at, body: sign(KEY, at, body) + b"," + sign(KEY, at, body)),
    "six minutes ago": ("another time", lambda at, body: sign(KEY, at - 360, body)),
    "a day ago": ("another time", lambda at, body: sign(KEY, at - 86_400, body)),
    "in 1970": ("another time", lambda at, body: sign(KEY, 0, body)),
    "in six minutes": ("another time", lambda at, body: sign(KEY, at + 360, body)),
    "in milliseconds": ("another time", lambda at, body: sign(KEY, at * 1000, body)),
    "a time made fresh": ("another time", lambda at, body: sign(KEY, at - 360, body).replace(b"%d" % (at - 360), b"%d" % at)),
    "a time below zero": ("another time", lambda at, body: sign(KEY, -at, body)),
    "a time with a plus": ("another time", lambda at, body: sign(KEY, at, body).replace(b"t=", b"t=+")),
    "a time of 400 digits": ("another time", lambda at, body: sign(KEY, at, body).replace(b"t=", b"t=" + b"0" * 400)),
    "full-width digits": ("another time", lambda at, body: sign(KEY, at, body).replace(b"t=1", "t=１".encode())),
}  # fmt: skip
"""Name → class of attack, and the header that comes with an honest body at this second."""


def _flip(signature: bytes) -> bytes:
    return signature[:-1] + (b"0" if signature[-1:] != b"0" else b"1")


class Awaited:
    """An order that waits for its deposit, of which nobody has reported anything yet, and the provider's news of it."""

    def __init__(self, city: City) -> None:
        self._city = city
        self.event: dict[str, Any] = {}

    async def begin(self) -> "Awaited":
        city = self._city
        self.customer, worker = await city.person(Role.CUSTOMER), await city.person(Role.WORKER)
        self.order_id, quote_id = await city.quoted(self.customer, worker)
        version = (await self.customer.must("GET", f"/v1/orders/{self.order_id}"))["version"]
        await self.customer.command(self.order_id, "accept_quote", version, quote_id=quote_id, rev=1)
        payment_id = city.new_id()
        payload = json.dumps({"payment_id": payment_id, "milestone": 1, "rail": "sandbox"}).encode()
        actor = Actor("user", self.customer.id, self.customer.session_id)
        command = Command("order", self.order_id, "start_payment", actor, payment_id, payload)
        answer = await city.platform.router.ask(command, 10.0)
        data = json.loads(answer.events[0].data)
        news = {"order_id": self.order_id, "payment_id": payment_id} | {k: data[k] for k in ("amount", "currency")}
        self.event = {"id": f"evt_{payment_id}", "type": "payment.held", "data": news}
        return self

    @property
    def body(self) -> bytes:
        return json.dumps(self.event).encode()

    async def held(self) -> list[int]:
        order = await self.customer.must("GET", f"/v1/orders/{self.order_id}")
        return [entry["amount"] for entry in order["funding"] if entry["status"] == "held"]


async def said(city: City, body: bytes, signature: bytes, **headers: str) -> Answer:
    sent = {"content-type": "application/json", "x-signature": signature.decode("latin-1")} | headers
    raw = {name: value.encode("latin-1") for name, value in sent.items() if value}
    response = await city.http.post(PATH, content=body, headers=raw)
    return Answer(response.status_code, response.content, dict(response.headers))


def now_s(city: City) -> int:
    return city.platform.clock.now_ms() // 1000


async def test_news_whose_signature_is_not_for_these_bytes_now_are_refused_alike(city: City, tally: Tally) -> None:
    body = (await Awaited(city).begin()).body
    before = city.state()
    for name, (kind, made) in WRONG.items():
        answer = await said(city, body, made(now_s(city), body))
        tally.tried("SEC-21", kind, f"POST {PATH}")
        assert (answer.status, answer.code) == (401, "unauthenticated"), (name, answer.body)
        assert city.state() == before, name
    honest = await said(city, body, sign(KEY, now_s(city), body))
    assert honest.status == 200, "or else everything were refused"
    assert city.state() != before


async def test_a_body_is_taken_as_it_was_signed_and_in_no_other_form(city: City, tally: Tally) -> None:
    awaited = await Awaited(city).begin()
    event = awaited.event
    body = json.dumps(event).encode()
    richer = json.dumps(event | {"data": event["data"] | {"amount": event["data"]["amount"] * 100}}).encode()
    before, at_s = city.state(), now_s(city)
    signature = sign(KEY, at_s, body)
    packed = gzip.compress(body)
    forms: dict[str, tuple[bytes, bytes, dict[str, str], set[int]]] = {
        "keys in another order": (json.dumps(dict(reversed(event.items()))).encode(), signature, {}, {401}),
        "other blanks": (json.dumps(event, indent=1).encode(), signature, {}, {401}),
        "a blank behind": (body + b" ", signature, {}, {401}),
        "another amount": (richer, signature, {}, {401}),
        "a key twice, the second of the attacker's": (
            body[:-1] + b',"type":"payment.failed"}', signature, {}, {401}),
        "cut": (body[:-1], signature, {}, {401, 422}),
        "empty": (b"", signature, {}, {401, 422}),
        "gzip, signed before": (packed, signature, {"content-encoding": "gzip"}, {415}),
        "gzip, signed behind": (packed, sign(KEY, at_s, packed), {"content-encoding": "gzip"}, {415}),
        "gzip without a word": (packed, sign(KEY, at_s, packed), {}, {401, 422}),
        "deflate": (packed, signature, {"content-encoding": "deflate"}, {415}),
        "UTF-16": (body.decode().encode("utf-16"), signature, {}, {401, 422}),
        "signed, and of no known shape": (b'{"id":"x"}', sign(KEY, at_s, b'{"id":"x"}'), {}, {422}),
        "signed, and no JSON": (b"\xff", sign(KEY, at_s, b"\xff"), {}, {422}),
    }  # fmt: skip
    for name, (sent, signed, headers, wanted) in forms.items():
        answer = await said(city, sent, signed, **headers)
        tally.tried("SEC-21", "another body", f"POST {PATH}")
        assert answer.status in wanted, (name, answer.body)
        assert city.state() == before, name


async def test_a_token_does_not_stand_in_for_a_signature(city: City, tally: Tally) -> None:
    body = (await Awaited(city).begin()).body
    before = city.state()
    for role in Role:
        answer = await said(city, body, b"", authorization=f"Bearer {city.of[role].owner.token}")
        tally.tried("SEC-21", f"the token of {role} for a signature", f"POST {PATH}")
        assert (answer.status, answer.code) == (401, "unauthenticated")
    for name in ("stripe-signature", "x-hub-signature-256", "x-signature-v1", "x_signature"):
        answer = await said(city, body, b"", **{name: sign(KEY, now_s(city), body).decode()})
        tally.tried("SEC-21", "another header", f"POST {PATH}")
        assert (answer.status, answer.code) == (401, "unauthenticated")
    assert city.state() == before


async def test_news_that_come_twenty_times_at_once_and_again_later_count_once(city: City, tally: Tally) -> None:
    awaited = await Awaited(city).begin()
    event = awaited.event
    body = json.dumps(event).encode()
    answers = await asyncio.gather(*(said(city, body, sign(KEY, now_s(city), body)) for _ in range(20)))
    tally.tried("SEC-21", "the same news again", f"POST {PATH}", 20)
    assert {answer.status for answer in answers} <= {200, 503}, [answer.body for answer in answers]
    assert (await said(city, body, sign(KEY, now_s(city), body))).status == 200
    after, held = city.rows(), await awaited.held()
    for seconds in (-299, -60, 0, 60, 299):
        answer = await said(city, body, sign(KEY, now_s(city) + seconds, body))
        tally.tried("SEC-21", "the same news again", f"POST {PATH}")
        assert answer.status == 200
    assert city.rows() == after
    assert held == [event["data"]["amount"]]
    for change in ({"amount": 1}, {"currency": "EUR"}):
        other = json.dumps(event | {"data": event["data"] | change}).encode()
        answer = await said(city, other, sign(KEY, now_s(city), other))
        tally.tried("SEC-21", "other news under a known id", f"POST {PATH}")
        assert answer.status in (409, 422), answer.body
    assert city.rows() == after


@pytest.mark.parametrize("what", ["an order that nobody has", "somebody else's order", "a payment that nobody made"])
async def test_signed_news_about_something_else_change_nothing(city: City, tally: Tally, what: str) -> None:
    awaited = await Awaited(city).begin()
    event = awaited.event
    places = {
        "an order that nobody has": {"order_id": city.new_id()},
        "somebody else's order": {"order_id": city.stranger.ids["order_id"]},
        "a payment that nobody made": {"payment_id": city.new_id()},
    }
    body = json.dumps(event | {"data": event["data"] | places[what]}).encode()
    before = city.state()
    answer = await said(city, body, sign(KEY, now_s(city), body))
    tally.tried("SEC-21", what, f"POST {PATH}")
    assert answer.status in (404, 409, 422), answer.body
    assert city.state() == before
