"""Tokens as attackers make them. Each table names a case and says how to make its token; all but the last are refused.

Where the form is what is wrong, the token is signed with the platform's own key: it is refused for its form alone.
"""

import base64
import hmac
import json
import uuid
from collections.abc import Callable
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from storage.tokens import JwtIssuer, SigningKeys

USER: Final = "01890000-0000-7000-8000-000000000001"
OTHER_USER: Final = "01890000-0000-7000-8000-000000000002"
SESSION: Final = "01890000-0000-7000-8000-00000000000a"
OTHERS_SESSION: Final = "01890000-0000-7000-8000-00000000000b"
REVOKED_SESSION: Final = "01890000-0000-7000-8000-00000000000c"
UNKNOWN_SESSION: Final = "01890000-0000-7000-8000-00000000000d"
NOW_S: Final = 1_800_000_000


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Craft:
    """What an attacker has: real tokens, the public key, keys of their own, and a server that answers with those."""

    def __init__(self, keys: SigningKeys, own: SigningKeys, canary: str) -> None:
        self.keys, self.own, self.canary = keys, own, canary
        self.issuer = JwtIssuer(keys)
        self.real = self.issuer.access(USER, SESSION, NOW_S * 1000, 900)
        self.public = keys.newest.public

    @property
    def kid(self) -> str:
        return self.keys.newest.kid

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good claims with these changes; None leaves one out."""
        claims = {
            "iss": "renoveasy",
            "aud": "renoveasy-api",
            "sub": USER,
            "sid": SESSION,
            "iat": NOW_S,
            "exp": NOW_S + 900,
            "jti": "x",
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def header(self, **changes: Any) -> dict[str, Any]:
        return {"alg": "RS256", "typ": "at+jwt", "kid": self.kid} | changes

    def signed(self, header: Any = None, claims: Any = None, key: RSAPrivateKey | None = None) -> str:
        """PKCS #1 v1.5 with SHA-256 over whatever these are; the platform's key unless another is given."""
        body = (
            f"{part(self.header() if header is None else header)}.{part(self.claims() if claims is None else claims)}"
        )
        signature = (key or self.keys.newest.private).sign(body.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{body}.{part(signature)}"

    def with_claims(self, **changes: Any) -> str:
        return self.signed(claims=self.claims(**changes))

    def with_header(self, **changes: Any) -> str:
        return self.signed(self.header(**changes))

    def own_signed(self, **header: Any) -> str:
        return self.signed(self.header(**header), key=self.own.newest.private)

    def unsigned(self, alg: Any, signature: str = "") -> str:
        return f"{part(self.header(alg=alg))}.{part(self.claims())}.{signature}"

    def shared(self, alg: str, secret: bytes, digest: str = "sha256", **header: Any) -> str:
        body = f"{part(self.header(alg=alg, **header))}.{part(self.claims())}"
        return f"{body}.{part(hmac.digest(secret, body.encode(), digest))}"

    def by_algorithm(self, alg: str, key: Any = None) -> str:
        headers = {"kid": self.kid, "typ": "at+jwt"}
        return jwt.encode(self.claims(), key or self.keys.newest.private, alg, headers=headers)

    def public_as(self, form: str) -> bytes:
        jwk = self.keys.jwks()["keys"][0]
        encoding, shape = serialization.Encoding, serialization.PublicFormat
        forms = {
            "pem": self.public.public_bytes(encoding.PEM, shape.SubjectPublicKeyInfo),
            "pem-stripped": self.public.public_bytes(encoding.PEM, shape.SubjectPublicKeyInfo).strip(),
            "der": self.public.public_bytes(encoding.DER, shape.SubjectPublicKeyInfo),
            "pkcs1-pem": self.public.public_bytes(encoding.PEM, shape.PKCS1),
            "pkcs1-der": self.public.public_bytes(encoding.DER, shape.PKCS1),
            "jwk": json.dumps(jwk).encode(),
            "jwk-sorted": json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode(),
            "modulus": jwk["n"].encode(),
            "kid": self.kid.encode(),
            "empty": b"",
        }
        return forms[form]

    def parts(self) -> list[str]:
        return self.real.split(".")

    def resigned(self, signature: bytes) -> str:
        header, claims, _ = self.parts()
        return f"{header}.{claims}.{part(signature)}"

    def real_signature(self) -> bytes:
        return base64.urlsafe_b64decode(self.parts()[2] + "==")

    def spelt(self, place: int, change: Callable[[str], str]) -> str:
        """The real token with one of its three parts written otherwise."""
        parts = self.parts()
        parts[place] = change(parts[place])
        return ".".join(parts)


Make = Callable[[Craft], str]

_SPELLINGS = ("none", "None", "NONE", "nOnE", "NoNe", "none ")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _other_last_bits(text: str) -> str:
    """Another spelling of the same bytes: the last character of a 256-byte signature carries only two bits of them."""
    return text[:-1] + _ALPHABET[_ALPHABET.index(text[-1]) ^ 1]


def _flipped(signature: bytes, place: int) -> bytes:
    changed = bytearray(signature)
    changed[place] ^= 1
    return bytes(changed)


SIGNATURES: Final[dict[str, Make]] = {
    **{f"none-{n}-{s!r}": lambda c, s=s: c.unsigned(s) for n, s in enumerate(_SPELLINGS)},
    **{f"none-{n}-{s!r}-with-a-signature": lambda c, s=s: c.unsigned(s, c.parts()[2]) for n, s in enumerate(_SPELLINGS)},
    "alg-empty": lambda c: c.unsigned(""),
    "alg-null": lambda c: c.unsigned(None),
    "alg-list": lambda c: c.unsigned(["RS256", "none"]),
    **{
        f"hs256-with-public-key-as-{form}": lambda c, form=form: c.shared("HS256", c.public_as(form))
        for form in (
            "pem", "pem-stripped", "der", "pkcs1-pem", "pkcs1-der", "jwk", "jwk-sorted", "modulus", "kid", "empty",
        )
    },
    "hs384-with-public-pem": lambda c: c.shared("HS384", c.public_as("pem"), "sha384"),
    "hs512-with-public-pem": lambda c: c.shared("HS512", c.public_as("pem"), "sha512"),
    "hs256-called-rs256": lambda c: c.shared("RS256", c.public_as("pem")),
    **{f"swapped-to-{alg}": lambda c, alg=alg: c.by_algorithm(alg) for alg in ("PS256", "PS384", "PS512", "RS384", "RS512")},
    "swapped-to-ES256": lambda c: c.by_algorithm("ES256", ec.generate_private_key(ec.SECP256R1())),
    "swapped-to-ES384": lambda c: c.by_algorithm("ES384", ec.generate_private_key(ec.SECP384R1())),
    "swapped-to-EdDSA": lambda c: c.by_algorithm("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    "ES256-of-zeros": lambda c: c.unsigned("ES256", part(bytes(64))),
    "PS256-called-RS256": lambda c: part(c.header()) + "." + c.by_algorithm("PS256").partition(".")[2],
    "RS256-called-PS256": lambda c: part(c.header(alg="PS256")) + "." + c.real.partition(".")[2],
    "rs256-in-small-letters": lambda c: c.with_header(alg="rs256"),
    "another-key": lambda c: c.own_signed(),
    "signature-empty": lambda c: c.resigned(b""),
    "signature-missing": lambda c: c.real.rpartition(".")[0],
    "signature-twice": lambda c: f"{c.real}.{c.parts()[2]}",
    "signature-doubled": lambda c: c.resigned(c.real_signature() * 2),
    "signature-of-zeros": lambda c: c.resigned(bytes(256)),
    "signature-of-ones": lambda c: c.resigned(b"\xff" * 256),
    "signature-of-one": lambda c: c.resigned(bytes(255) + b"\x01"),
    "signature-shorter": lambda c: c.resigned(c.real_signature()[:-1]),
    "signature-longer": lambda c: c.resigned(c.real_signature() + b"\0"),
    "signature-with-leading-zero": lambda c: c.resigned(b"\0" + c.real_signature()),
    "signature-first-bit": lambda c: c.resigned(_flipped(c.real_signature(), 0)),
    "signature-last-bit": lambda c: c.resigned(_flipped(c.real_signature(), 255)),
    "signature-of-another-token": lambda c: f"{c.with_claims(exp=NOW_S + 9999).rpartition('.')[0]}.{c.parts()[2]}",
    "claims-changed": lambda c: f"{c.parts()[0]}.{part(c.claims(sub=OTHER_USER, sid=OTHERS_SESSION))}.{c.parts()[2]}",
    "padding-in-header": lambda c: c.spelt(0, lambda text: text + "="),
    "padding-in-claims": lambda c: c.spelt(1, lambda text: text + "=="),
    "padding-in-signature": lambda c: c.spelt(2, lambda text: text + "=="),
    "last-bits-of-signature": lambda c: c.spelt(2, _other_last_bits),
    "space-in-signature": lambda c: c.spelt(2, lambda text: text[:9] + " " + text[9:]),
    "newline-in-signature": lambda c: c.spelt(2, lambda text: text[:9] + "\n" + text[9:]),
    "newline-behind": lambda c: c.real + "\n",
    "tab-before": lambda c: "\t" + c.real,
    "nul-behind": lambda c: c.real + "\0",
    "percent-encoded-dot": lambda c: c.real.replace(".", "%2E", 1),
    "standard-alphabet": lambda c: c.spelt(2, lambda text: text.replace("-", "+").replace("_", "/") + "+"),
    "full-width-dot": lambda c: c.real.replace(".", "\uff0e", 1),
    "bearer-twice": lambda c: f"Bearer {c.real}",
    "two-tokens": lambda c: f"{c.real},{c.real}",
    "header-not-json": lambda c: c.signed(b"RS256"),
    "header-a-list": lambda c: c.signed([c.header()]),
    "header-with-bom": lambda c: c.signed(b"\xef\xbb\xbf" + json.dumps(c.header()).encode()),
    "header-in-utf-16": lambda c: c.signed(json.dumps(c.header() | {"x": 1}).encode("utf-16")),
    "header-100-deep": lambda c: c.signed(b'{"alg":' + b"[" * 100 + b"]" * 100 + b"}"),
    "claims-not-json": lambda c: c.signed(claims=b"sub"),
    "claims-a-list": lambda c: c.signed(claims=[c.claims()]),
    "encrypted-form": lambda c: f"{c.real}.{c.parts()[2]}.{c.parts()[2]}",
    "json-serialisation": lambda c: json.dumps(dict(zip(("protected", "payload", "signature"), c.parts(), strict=True))),
    "nested": lambda c: c.signed(c.header(cty="JWT"), c.real.encode()),
    "crit-exp": lambda c: c.with_header(crit=["exp"]),
    "crit-unknown": lambda c: c.with_header(crit=["x"], x=1),
    "crit-empty": lambda c: c.with_header(crit=[]),
    "crit-text": lambda c: c.with_header(crit="exp"),
    "crit-null": lambda c: c.with_header(crit=None),
    "crit-b64-false": lambda c: c.with_header(crit=["b64"], b64=False),
    "b64-false": lambda c: c.with_header(b64=False),
    "zip": lambda c: c.with_header(zip="DEF"),
}  # fmt: skip
"""SEC-3."""

_KIDS: Final[dict[str, Any]] = {
    "dots-to-dev-null": "../../../../../../dev/null",
    "dots-to-the-key-file": "../keys/signing-1.pem",
    "file-name": "signing-1.pem",
    "number": "1",
    "absolute-path": "/etc/passwd",
    "backslashes": "..\\..\\dev\\null",
    "encoded-dots": "%2e%2e%2f%2e%2e%2fdev%2fnull",
    "doubled-dots": "....//....//dev/null",
    "file-url": "file:///dev/null",
    "sql-or": "' OR 1=1 --",
    "sql-union": "x' UNION SELECT 'secret' --",
    "sql-drop": "x'; DROP TABLE session; --",
    "sql-sleep": "x' AND SLEEP(5) --",
    "sql-double-quote": 'x" OR ""="',
    "nul": "\0",
    "nul-inside": "a\0b",
    "newline": "x\r\nFLUSHALL\r\n",
    "template": "{{7*7}}${7*7}",
    "shell": "$(id)`id`;id",
    "format": "%s%n{0.__class__}",
    "prototype": "__proto__",
    "star": "*",
    "lone-surrogate": "\ud800",
    "empty": "",
    "10-kb": "k" * 10_240,
    "is-null": None,
    "is-number": 7,
    "is-true": True,
    "is-list": ["x"],
    "is-object": {"$ne": ""},
}


def _kid_of(change: Callable[[str], Any]) -> Make:
    return lambda c: c.with_header(kid=change(c.kid))


def _own_jwk(c: Craft) -> dict[str, Any]:
    jwk: dict[str, Any] = c.own.jwks()["keys"][0]
    return jwk


KEY_NAMES: Final[dict[str, Make]] = {
    **{f"kid-{name}": lambda c, kid=kid: c.with_header(kid=kid) for name, kid in _KIDS.items()},
    "kid-real-and-nul": _kid_of(lambda kid: kid + "\0"),
    "kid-real-and-space": _kid_of(lambda kid: kid + " "),
    "kid-real-in-capitals": _kid_of(str.upper),
    "kid-real-cut": _kid_of(lambda kid: kid[:-1]),
    "kid-real-in-a-list": _kid_of(lambda kid: [kid]),
    "kid-left-out": lambda c: c.signed({"alg": "RS256", "typ": "at+jwt"}),
    "kid-dev-null-as-empty-secret": lambda c: c.shared("HS256", b"", kid="../../dev/null"),
    "kid-sql-union-as-secret": lambda c: c.shared("HS256", b"secret", kid="x' UNION SELECT 'secret' --"),
    "kid-url": lambda c: c.own_signed(kid=f"{c.canary}/key.pem"),
    "kid-of-the-attacker": lambda c: c.own_signed(kid=c.own.newest.kid),
    "jwk": lambda c: c.own_signed(jwk=_own_jwk(c)),
    "jwk-and-its-kid": lambda c: c.own_signed(kid=c.own.newest.kid, jwk=_own_jwk(c)),
    "jwk-secret": lambda c: c.shared("HS256", b"k", jwk={"kty": "oct", "k": part(b"k")}),
    "jwk-of-ours": lambda c: c.with_header(jwk=c.keys.jwks()["keys"][0]),
    "jku": lambda c: c.own_signed(jku=f"{c.canary}/jwks.json"),
    "jku-and-its-kid": lambda c: c.own_signed(kid=c.own.newest.kid, jku=f"{c.canary}/jwks.json"),
    "jku-signed-by-us": lambda c: c.with_header(jku=f"{c.canary}/jwks.json"),
    "jku-without-scheme": lambda c: c.own_signed(kid=c.own.newest.kid, jku=c.canary.removeprefix("http:")),
    "jku-with-userinfo": lambda c: c.own_signed(kid=c.own.newest.kid, jku=c.canary.replace("//", "//renoveasy@")),
    "jku-with-fragment": lambda c: c.own_signed(kid=c.own.newest.kid, jku=f"{c.canary}/jwks.json#renoveasy"),
    "jku-list": lambda c: c.own_signed(kid=c.own.newest.kid, jku=[f"{c.canary}/jwks.json"]),
    "x5u": lambda c: c.own_signed(x5u=f"{c.canary}/certificate.pem"),
    "x5u-and-its-kid": lambda c: c.own_signed(kid=c.own.newest.kid, x5u=f"{c.canary}/certificate.pem"),
    "x5u-signed-by-us": lambda c: c.with_header(x5u=f"{c.canary}/certificate.pem"),
    "x5c": lambda c: c.own_signed(x5c=[base64.b64encode(c.public_as("der")).decode()]),
    "x5t": lambda c: c.own_signed(x5t=part(bytes(20))),
    "iss-url": lambda c: c.signed(c.header(kid=c.own.newest.kid), c.claims(iss=c.canary), key=c.own.newest.private),
}
"""SEC-4."""

CLAIMS: Final[dict[str, Make]] = {
    **{f"{name}-left-out": lambda c, name=name: c.with_claims(**{name: None}) for name in
       ("iss", "aud", "sub", "sid", "iat", "exp", "jti")},
    "aud-another": lambda c: c.with_claims(aud="another-api"),
    "aud-of-tickets": lambda c: c.with_claims(aud="renoveasy-connect"),
    "aud-longer": lambda c: c.with_claims(aud="renoveasy-api.evil.example"),
    "aud-in-capitals": lambda c: c.with_claims(aud="RENOVEASY-API"),
    "aud-empty": lambda c: c.with_claims(aud=""),
    "aud-empty-list": lambda c: c.with_claims(aud=[]),
    "aud-object": lambda c: c.with_claims(aud={"renoveasy-api": 1}),
    "iss-another": lambda c: c.with_claims(iss="somebody"),
    "iss-longer": lambda c: c.with_claims(iss="renoveasy/"),
    "iss-in-capitals": lambda c: c.with_claims(iss="RenovEasy"),
    "iss-empty": lambda c: c.with_claims(iss=""),
    "iss-list": lambda c: c.with_claims(iss=["renoveasy"]),
    "exp-text": lambda c: c.with_claims(exp=str(NOW_S + 900)),
    "exp-fraction": lambda c: c.with_claims(exp=NOW_S + 900.5),
    "exp-true": lambda c: c.with_claims(exp=True),
    "exp-list": lambda c: c.with_claims(exp=[NOW_S + 900]),
    "exp-nan": lambda c: c.with_claims(exp=float("nan")),
    "exp-infinite": lambda c: c.with_claims(exp=float("inf")),
    "iat-text": lambda c: c.with_claims(iat="now"),
    "iat-fraction": lambda c: c.with_claims(iat=NOW_S + 0.5),
    "iat-minutes-ahead": lambda c: c.with_claims(iat=NOW_S + 60),
    "iat-an-hour-ahead": lambda c: c.with_claims(iat=NOW_S + 3_600, exp=NOW_S + 4_500),
    "iat-in-milliseconds": lambda c: c.with_claims(iat=NOW_S * 1000),
    "nbf-minutes-ahead": lambda c: c.with_claims(nbf=NOW_S + 60),
    "nbf-text": lambda c: c.with_claims(nbf="later"),
    "sub-of-another": lambda c: c.with_claims(sub=OTHER_USER),
    "sid-of-another": lambda c: c.with_claims(sid=OTHERS_SESSION),
    "sub-is-the-session": lambda c: c.with_claims(sub=SESSION),
    "sub-no-id": lambda c: c.with_claims(sub="admin"),
    "sub-list": lambda c: c.with_claims(sub=[USER]),
    "sid-path": lambda c: c.with_claims(sid=f"../{SESSION}"),
    "sid-sql": lambda c: c.with_claims(sid=f"{SESSION}' OR 1=1 --"),
    "sid-in-capitals": lambda c: c.with_claims(sid=SESSION.upper()),
    "typ-jwt": lambda c: c.with_header(typ="JWT"),
    "typ-in-capitals": lambda c: c.with_header(typ="AT+JWT"),
    "typ-of-tickets": lambda c: c.with_header(typ="ticket+jwt"),
    "typ-with-application": lambda c: c.with_header(typ="application/at+jwt"),
    "typ-null": lambda c: c.with_header(typ=None),
    "refresh-token": lambda c: c.issuer.refresh(),
    "hash-of-refresh-token": lambda c: c.issuer.hash(c.issuer.refresh()).hex(),
    "ticket-without-its-prefix": lambda c: c.issuer.ticket(USER, SESSION, "t", NOW_S * 1000, 30).removeprefix("ticket."),
    "ticket-called-an-access-token": lambda c: c.signed(c.header(), c.claims(aud="renoveasy-connect", jti="t")),
    "access-token-called-a-ticket": lambda c: f"ticket.{c.real}",
    "a-ticket-nobody-issued": lambda c: c.issuer.ticket(USER, SESSION, uuid.uuid4().hex, NOW_S * 1000, 30),
    "session-id": lambda c: SESSION,
    "user-id": lambda c: USER,
    "sealed": lambda c: part(c.issuer.seal(c.real)),
    "key-set": lambda c: json.dumps(c.keys.jwks()),
}  # fmt: skip
"""SEC-5: wrong claims, and other things that the platform gives out, used as access tokens."""

TIMES: Final[dict[str, tuple[dict[str, int], str]]] = {
    "fresh": ({}, "accepted"),
    "exp-in-a-second": ({"exp": 1}, "accepted"),
    "exp-now": ({"exp": 0}, "accepted"),
    "exp-4-s-ago": ({"exp": -4}, "accepted"),
    "exp-5-s-ago": ({"exp": -5}, "token_expired"),
    "exp-6-s-ago": ({"exp": -6}, "token_expired"),
    "exp-an-hour-ago": ({"exp": -3_600}, "token_expired"),
    "exp-in-1970": ({"exp": -NOW_S}, "token_expired"),
    "exp-before-1970": ({"exp": -2 * NOW_S}, "token_expired"),
    "iat-an-hour-ago": ({"iat": -3_600}, "accepted"),
    "iat-4-s-ahead": ({"iat": 4}, "accepted"),
    "iat-5-s-ahead": ({"iat": 5}, "accepted"),
    "iat-6-s-ahead": ({"iat": 6}, "unauthenticated"),
    "iat-a-day-ahead": ({"iat": 86_400, "exp": 2 * 86_400}, "unauthenticated"),
    "iat-6-s-ahead-though-nbf-is-past": ({"iat": 6, "nbf": -60}, "unauthenticated"),
    "nbf-now": ({"nbf": 0}, "accepted"),
    "nbf-5-s-ahead": ({"nbf": 5}, "accepted"),
    "nbf-6-s-ahead": ({"nbf": 6}, "unauthenticated"),
    "nbf-ahead-and-expired": ({"nbf": 6, "exp": -6}, "unauthenticated"),
    "iat-ahead-and-expired": ({"iat": 6, "exp": -6}, "unauthenticated"),
}
"""SEC-5: claims in seconds from now, and what becomes of them: five seconds are forgiven to clocks that differ, and no more."""

_CLASSES: Final = {
    "none": "SEC-3 the algorithm none",
    "alg": "SEC-3 no algorithm",
    "hs": "SEC-3 the public key as a secret",
    "swapped": "SEC-3 another algorithm",
    "ES256": "SEC-3 another algorithm",
    "PS256": "SEC-3 another algorithm",
    "RS256": "SEC-3 another algorithm",
    "rs256": "SEC-3 another algorithm",
    "another": "SEC-3 another key",
    "signature": "SEC-3 a changed signature",
    "claims": "SEC-3 changed claims",
    "header": "SEC-3 a header of another form",
    "encrypted": "SEC-3 another form",
    "json": "SEC-3 another form",
    "nested": "SEC-3 another form",
    "crit": "SEC-3 extensions",
    "b64": "SEC-3 extensions",
    "zip": "SEC-3 extensions",
    "kid": "SEC-4 a key's name",
    "kid-sql": "SEC-4 a key's name that is SQL",
    "kid-is": "SEC-4 a key's name of another type",
    "kid-dots": "SEC-4 a key's name that is a file",
    "kid-file": "SEC-4 a key's name that is a file",
    "kid-absolute": "SEC-4 a key's name that is a file",
    "kid-dev": "SEC-4 a key's name that is a file",
    "kid-url": "SEC-4 a key's name that is a URL",
    "jwk": "SEC-4 a key in the token",
    "jku": "SEC-4 a URL of keys",
    "x5u": "SEC-4 a URL of certificates",
    "x5c": "SEC-4 a certificate in the token",
    "x5t": "SEC-4 a certificate in the token",
    "iss-url": "SEC-4 a URL as issuer",
    "iss": "SEC-5 another issuer",
    "aud": "SEC-5 another audience",
    "exp": "SEC-5 an expiry that is none",
    "iat": "SEC-5 from the future",
    "nbf": "SEC-5 not yet",
    "sub": "SEC-5 somebody else's name",
    "sid": "SEC-5 somebody else's session",
    "typ": "SEC-5 another kind of token",
    "refresh": "SEC-5 a refresh token",
    "hash": "SEC-5 a refresh token",
    "ticket": "SEC-5 a ticket",
    "access": "SEC-5 a ticket",
    "a-ticket": "SEC-5 a ticket",
    "session": "SEC-5 an id",
    "user": "SEC-5 an id",
    "sealed": "SEC-5 what is no token",
    "key": "SEC-5 what is no token",
}


def class_of(case: str) -> tuple[str, str]:
    """Line of the catalogue and class of attack of a case of these tables: sixty spellings of one lie are one class."""
    if case.endswith("-left-out") and not case.startswith("kid"):
        return "SEC-5", "a claim left out"
    parts = case.split("-")
    found = _CLASSES.get("-".join(parts[:2])) or _CLASSES.get(parts[0].rstrip("0123456789")) or _CLASSES.get(parts[0])
    line, _, name = (found or "SEC-3 another spelling").partition(" ")
    return line, name
