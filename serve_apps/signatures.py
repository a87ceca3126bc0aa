"""Keys and signatures of devices: P-256 and ES256 (FIPS 186-5, RFC 7518), each in exactly one spelling."""

import base64
import binascii
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from domain.errors import Refusal, invalid
from serve_apps.schemas.auth import EcJwk

_SCALAR_BYTES: Final = 32
_RAW_BYTES: Final = 2 * _SCALAR_BYTES
_MAX_SPKI_CHARS: Final = 512
_MAX_SIGNATURE_CHARS: Final = 128
_NOBODY: Final = ec.derive_private_key(1, ec.SECP256R1()).public_key()
"""Stands in for a key that is not there, so that its absence takes as long to find."""


def checked_key(given: EcJwk | str) -> bytes:
    """A P-256 public key, as DER (SubjectPublicKeyInfo). Refusal `invalid` for all else.

    A JWK has the coordinates of a point on the curve; a text is SubjectPublicKeyInfo in base64 or base64url.
    """
    try:
        key = _of_jwk(given) if isinstance(given, EcJwk) else _of_spki(given)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key() from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _no_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _no_key() -> Refusal:
    return invalid("public_key", "invalid", "must be a P-256 public key: a JWK, or SubjectPublicKeyInfo in base64")


def _of_jwk(jwk: EcJwk) -> ec.EllipticCurvePublicKey:
    x, y = (_decoded(part) for part in (jwk.x, jwk.y))
    if len(x) != _SCALAR_BYTES or len(y) != _SCALAR_BYTES:
        raise ValueError("coordinates have 32 bytes")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)


def _of_spki(text: str) -> Any:
    if len(text) > _MAX_SPKI_CHARS:
        raise ValueError("too long for a P-256 key")
    return load_der_public_key(_decoded(text))


def verified(public_key: bytes | None, signature: str, message: bytes) -> bool:
    """Whether this is the key's signature (ECDSA with SHA-256) of the message: `r || s` or DER, in base64url or base64.

    Only the one encoding of a pair (r, s) counts. Both s and n - s do, because phones give either; a message that is
    good for one use makes that harmless. A key that is None takes as long and is never right.
    """
    key = _NOBODY if public_key is None else load_der_public_key(public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey), "only such keys are stored"
    try:
        key.verify(_der(signature), message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return public_key is not None


def _der(signature: str) -> bytes:
    if len(signature) > _MAX_SIGNATURE_CHARS:
        raise ValueError("too long for a signature")
    raw = _decoded(signature)
    if len(raw) == _RAW_BYTES:
        r, s = (int.from_bytes(half, "big") for half in (raw[:_SCALAR_BYTES], raw[_SCALAR_BYTES:]))
        return encode_dss_signature(r, s)
    return raw  # verifying reads nothing but strict DER


def _decoded(text: str) -> bytes:
    """The bytes of base64 or base64url, padded or not; nothing in between, and no bits to spare at the end."""
    if set(text) & {"+", "/"} and set(text) & {"-", "_"}:
        raise ValueError("two alphabets")
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        raw = base64.b64decode(plain.encode("ascii") + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64") from error
    if base64.b64encode(raw).decode().rstrip("=") != plain or len(text) - len(plain) not in (0, -len(plain) % 4):
        raise ValueError("not canonical base64")
    return raw
