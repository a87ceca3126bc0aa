"""A device with a P-256 key, as an app has it: registers the public half and signs challenges."""

import base64
from typing import Any

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from domain.devices import login_message

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the curve's group (FIPS 186-5)."""
AUDIENCE = "renoveasy-api"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Handset:
    """A phone that keeps a key pair."""

    def __init__(self, device_id: str = "phone-1") -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.device = {"id": device_id, "name": "Li's phone", "platform": "ios"}
        self.key_id = ""

    def jwk(self) -> dict[str, str]:
        numbers = self.private.public_key().public_numbers()
        x, y = (b64(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y}

    def spki(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, challenge: str, key_id: str | None = None, audience: str = AUDIENCE) -> tuple[int, int]:
        message = login_message(audience, self.key_id if key_id is None else key_id, challenge)
        return decode_dss_signature(self.private.sign(message, ec.ECDSA(hashes.SHA256())))

    async def register(self, http: httpx.AsyncClient, auth: dict[str, str]) -> str:
        body = {"public_key": self.jwk(), "name": "Li's phone"}
        response = await http.post("/v1/auth/device-keys", headers=auth, json=body)
        assert response.status_code == 201, response.text
        self.key_id = response.json()["id"]
        return self.key_id

    async def login(self, http: httpx.AsyncClient, **changes: Any) -> httpx.Response:
        """Log in by a fresh challenge; `changes` replace parts of the request."""
        challenge = await challenge_for(http, self.key_id)
        body = {
            "key_id": self.key_id,
            "challenge": challenge,
            "signature": raw(*self.sign(challenge)),
            "device": self.device,
        }
        return await http.post("/v1/auth/device-login", json=body | changes)


async def challenge_for(http: httpx.AsyncClient, key_id: str) -> str:
    response = await http.post("/v1/auth/device-login/challenge", json={"key_id": key_id})
    assert response.status_code == 200, response.text
    return str(response.json()["challenge"])


def raw(r: int, s: int) -> str:
    return b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def der(r: int, s: int) -> bytes:
    return encode_dss_signature(r, s)
