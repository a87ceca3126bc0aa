"""The two calls of Vault's transit API that the platform makes, over HTTP and with real AES-GCM, as Vault's API documents them.

It answers as Vault does: `{"data": …}`, or a status with `{"errors": […]}`; 403 without the right token, 503 while sealed,
400 for what it has not encrypted. Every version of a key goes on decrypting after `rotate`.
"""

import base64
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.test-token-of-vault"


class Vault:
    """Listens on a free port from `start` to `stop`, and on the same one when started again."""

    def __init__(self, mount: str = "transit", keys: tuple[str, ...] = ("renoveasy",)) -> None:
        self.mount = mount
        self.keys = {name: [AESGCM.generate_key(256)] for name in keys}
        self.sealed = False
        self.answer: bytes | None = None
        """Said instead of everything, when set."""
        self.asked: list[str] = []
        self.namespaces: list[str | None] = []
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def rotate(self, name: str) -> None:
        self.keys[name].append(AESGCM.generate_key(256))

    def start(self) -> Self:
        vault = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                body = json.loads(self.rfile.read(length) or b"{}")
                vault.asked.append(self.path)
                vault.namespaces.append(self.headers.get("X-Vault-Namespace"))
                status, told = vault._answer(self.path, self.headers.get("X-Vault-Token"), body)
                data = vault.answer if vault.answer is not None else json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _answer(self, path: str, token: str | None, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if token != TOKEN:
            return 403, {"errors": ["permission denied"]}
        prefix, _, name = path.rpartition("/")
        versions = self.keys.get(name)
        if versions is None:
            return 400, {"errors": ["encryption key not found"]}
        if prefix == f"/v1/{self.mount}/datakey/plaintext":
            plain = os.urandom(body.get("bits", 256) // 8)
            return 200, {"data": {"plaintext": _b64(plain), "ciphertext": _wrapped(versions, plain)}}
        if prefix == f"/v1/{self.mount}/decrypt":
            try:
                return 200, {"data": {"plaintext": _b64(_unwrapped(versions, body["ciphertext"]))}}
            except (InvalidTag, ValueError, IndexError, KeyError):
                return 400, {"errors": ["cipher: message authentication failed"]}
        return 404, {"errors": []}


def _wrapped(versions: list[bytes], plain: bytes) -> str:
    nonce = os.urandom(12)
    return f"vault:v{len(versions)}:{_b64(nonce + AESGCM(versions[-1]).encrypt(nonce, plain, None))}"


def _unwrapped(versions: list[bytes], ciphertext: str) -> bytes:
    scheme, version, text = ciphertext.split(":", 2)
    if scheme != "vault":
        raise ValueError("invalid ciphertext: no prefix")
    raw = base64.b64decode(text, validate=True)
    return AESGCM(versions[int(version.removeprefix("v")) - 1]).decrypt(raw[:12], raw[12:], None)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
