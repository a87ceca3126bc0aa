"""A real OpenID provider on 127.0.0.1: discovery, authorisation, tokens and keys, which can be told to misbehave."""

import asyncio
import base64
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

CLIENT_ID = "renoveasy-app"
CLIENT_SECRET = "a secret with : and % in it"
DISCOVERY = "/.well-known/openid-configuration"


@cache
def rsa_key(number: int) -> RSAKey:
    """A key of 2,048 bits; each number's is made once in a process."""
    return RSAKey.generate_key(2048, {"kid": f"rsa-{number}", "use": "sig"}, private=True)


@cache
def ec_key(number: int) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": f"ec-{number}", "use": "sig"}, private=True)


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A compact JWS with whatever header, and whatever signature."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


class OidcServer:
    """As a context manager it serves. It does what a provider must, and refuses clients that do not do their part.

    `claims` overrides claims of id tokens (None: left out), `signer` makes the token in place of the newest key, `document`
    overrides the discovery document. `delays_s` are waited before a path is answered, `bodies` are answered in its place.
    An answer is followed by as many spaces as `pads` says, and sent a byte at a time where `trickle_s` says how far apart.
    """

    def __init__(self, now_s: Callable[[], float], subject: str = "subject-1") -> None:
        self._now_s = now_s
        self.subject = subject
        self.keys: list[RSAKey | ECKey] = [rsa_key(1)]
        self.claims: dict[str, Any] = {}
        self.signer: Callable[[dict[str, Any]], str] | None = None
        self.document: dict[str, Any] = {}
        self.delays_s: dict[str, float] = {}
        self.bodies: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.pads: dict[str, int] = {}
        self.trickle_s: dict[str, float] = {}
        self.token_answer: dict[str, Any] = {}
        self.hits: Counter[str] = Counter()
        self.refusals: list[str] = []
        self.codes: dict[str, dict[str, str]] = {}
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        self.issuer = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.issuer = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def visit(self, authorization_url: str, subject: str | None = None) -> dict[str, str]:
        """What a person's browser brings back from the page when they have agreed: the query of the redirect address."""
        async with httpx.AsyncClient(trust_env=False) as browser:
            answer = await browser.get(f"{authorization_url}&login={subject or self.subject}")
        assert answer.status_code == 302, answer.text
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    def id_token(self, nonce: str | None, subject: str) -> str:
        now_s = int(self._now_s())
        claims: dict[str, Any] = {
            "iss": self.issuer, "aud": CLIENT_ID, "sub": subject, "iat": now_s, "exp": now_s + 300, "nonce": nonce,
        }  # fmt: skip
        claims = {key: value for key, value in (claims | self.claims).items() if value is not None}
        if self.signer is not None:
            return self.signer(claims)
        key = self.keys[-1]
        algorithm = "RS256" if isinstance(key, RSAKey) else "ES256"
        header = {"alg": algorithm, "kid": key.kid}
        return jws.serialize_compact(header, json.dumps(claims), key, algorithms=[algorithm])

    # --- serving ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            url = urlsplit(target)
            self.hits[url.path] += 1
            await asyncio.sleep(self.delays_s.get(url.path, 0))
            if url.path in self.bodies:
                status, more, content = self.bodies[url.path]
            else:
                status, more, content = self._answer(method, url.path, url.query, headers, body.decode())
            content += b" " * self.pads.get(url.path, 0)
            lines = [f"HTTP/1.1 {status} x", f"content-length: {len(content)}", "connection: close"]
            lines += [f"{name}: {value}" for name, value in more.items()]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
            apart_s = self.trickle_s.get(url.path)
            for piece in (content,) if apart_s is None else (content[at : at + 1] for at in range(len(content))):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(apart_s or 0)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    def _answer(
        self, method: str, path: str, query: str, headers: dict[str, str], body: str
    ) -> tuple[int, dict[str, str], bytes]:
        if (method, path) == ("GET", DISCOVERY):
            return self._json(200, self._discovery())
        if (method, path) == ("GET", "/jwks"):
            return self._json(200, {"keys": [key.as_dict(private=False) for key in self.keys]})
        if (method, path) == ("GET", "/authorize"):
            return self._authorize(dict(parse_qsl(query)))
        if (method, path) == ("POST", "/token"):
            return self._token({name: values[0] for name, values in parse_qs(body).items()}, headers)
        return self._json(404, {"error": "not_found"})

    def _json(self, status: int, value: Any) -> tuple[int, dict[str, str], bytes]:
        return status, {"content-type": "application/json"}, json.dumps(value).encode()

    def _discovery(self) -> dict[str, Any]:
        at = self.issuer
        return {
            "issuer": at, "authorization_endpoint": f"{at}/authorize", "token_endpoint": f"{at}/token",
            "jwks_uri": f"{at}/jwks", "response_types_supported": ["code"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        } | self.document  # fmt: skip

    def _authorize(self, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        good = (
            asked.get("client_id") == CLIENT_ID
            and asked.get("response_type") == "code"
            and "openid" in asked.get("scope", "").split(" ")
            and asked.get("code_challenge_method") == "S256"
            and len(asked.get("code_challenge", "")) == 43
            and min(len(asked.get("state", "")), len(asked.get("nonce", ""))) >= 43
        )
        if not good:
            return self._json(400, {"error": "invalid_request", "asked": asked})
        code = f"code-{self.issuer[-5:]}-{next(self._numbers)}"
        self.codes[code] = asked
        back = {"state": asked["state"], "code": code, "iss": self.issuer}
        return 302, {"location": f"{asked['redirect_uri']}?{urlencode(back)}"}, b""

    def _token(self, asked: dict[str, str], headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        given = base64.b64decode(headers.get("authorization", "").removeprefix("Basic ")).decode()
        if given != f"{CLIENT_ID}:{CLIENT_SECRET}" and (asked.get("client_id"), asked.get("client_secret")) != (
            CLIENT_ID,
            CLIENT_SECRET,
        ):
            return self._refuse(401, "invalid_client")
        began = self.codes.pop(asked.get("code", ""), None)
        if began is None or asked.get("redirect_uri") != began["redirect_uri"]:
            return self._refuse(400, "invalid_grant")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(asked.get("code_verifier", "").encode()).digest())
        if challenge.rstrip(b"=").decode() != began["code_challenge"]:
            return self._refuse(400, "invalid_grant")
        answer = {"access_token": "at", "token_type": "Bearer", "expires_in": 300}
        answer["id_token"] = self.id_token(began["nonce"], began["login"])
        return self._json(200, answer | self.token_answer)

    def _refuse(self, status: int, error: str) -> tuple[int, dict[str, str], bytes]:
        self.refusals.append(error)
        return self._json(status, {"error": error})
