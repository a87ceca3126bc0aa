"""Data keys wrapped by the transit engine of HashiCorp Vault (or OpenBao), whose own key never leaves it."""

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from domain.keys import DATA_KEY_BYTES, FreshKey, KeysUnavailable


class VaultSettings(msgspec.Struct, frozen=True):
    """`url` such as https://vault:8200; `mount` and `key` name the transit engine and its key; `namespace` may be empty.

    `timeout_s` bounds each call. A `certificates` file names authorities beside the system's; empty: none.
    """

    url: str
    key: str
    mount: str = "transit"
    namespace: str = ""
    certificates: str = ""
    timeout_s: float = 5.0


class VaultKeyProvider:
    """`keys.KeyProvider` by `datakey/plaintext` and `decrypt` of the transit API.

    `token` is asked at each call, so that whoever renews it outside is followed. The token's policy needs `update` on
    `<mount>/datakey/plaintext/<key>` and `<mount>/decrypt/<key>`, and nothing else.
    """

    name: Final = "vault"

    def __init__(self, settings: VaultSettings, token: Callable[[], str]) -> None:
        self._settings = settings
        self._token = token

    async def new_key(self) -> FreshKey:
        data = await self._ask("datakey/plaintext", {"bits": DATA_KEY_BYTES * 8})
        return FreshKey(self._plain(data), str(data.get("ciphertext", "")).encode())

    async def unwrap(self, wrapped: bytes) -> bytes:
        return self._plain(await self._ask("decrypt", {"ciphertext": wrapped.decode("ascii", "replace")}))

    def _plain(self, data: dict[str, Any]) -> bytes:
        try:
            plain = base64.b64decode(data["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            plain = b""
        if len(plain) != DATA_KEY_BYTES:
            raise KeysUnavailable(f"{self._where} answered without a key of {DATA_KEY_BYTES} bytes")
        return plain

    @property
    def _where(self) -> str:
        return f"Vault's key {self._settings.key} at {self._settings.url}"

    async def _ask(self, action: str, body: dict[str, Any]) -> dict[str, Any]:
        settings = self._settings
        try:
            headers = {"X-Vault-Token": self._token(), "X-Vault-Request": "true"}
        except OSError as error:
            raise KeysUnavailable(f"Vault's token cannot be read: {error}") from None
        if settings.namespace:
            headers["X-Vault-Namespace"] = settings.namespace
        path = f"/v1/{quote(settings.mount)}/{action}/{quote(settings.key, safe='')}"
        try:
            async with self._client() as client:
                answer = await client.post(path, json=body, headers=headers)
            told = answer.json() if answer.content else {}
            if answer.status_code == 200 and isinstance(told["data"], dict):
                return dict(told["data"])
        except (httpx.HTTPError, OSError, KeyError, TypeError, ValueError) as error:
            # Of an error in the answer's form no text is shown: it may quote the answer, and the answer holds a key.
            reason = str(error) if isinstance(error, httpx.HTTPError | OSError) else "not what Vault answers"
            raise KeysUnavailable(f"{self._where} does not answer: {reason or type(error).__name__}") from None
        errors = told.get("errors") if isinstance(told, dict) else None
        raise KeysUnavailable(f"{self._where} refuses with {answer.status_code}: {_first(errors)}")

    def _client(self) -> httpx.AsyncClient:
        import ssl

        settings = self._settings
        verify = ssl.create_default_context()
        if settings.certificates:
            verify.load_verify_locations(settings.certificates)
        # No proxy and no .netrc of the environment: a key goes where the settings say, and nowhere else.
        return httpx.AsyncClient(
            base_url=settings.url, timeout=settings.timeout_s, verify=verify, trust_env=False, follow_redirects=False
        )


def _first(errors: Any) -> str:
    return str(errors[0])[:200] if isinstance(errors, list) and errors else "no reason given"
