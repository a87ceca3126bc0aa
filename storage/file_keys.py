"""Data keys wrapped under a key in a file: nothing but the data folder is needed."""

import os
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from domain.keys import DATA_KEY_BYTES, FreshKey, KeysUnavailable

_NONCE_BYTES: Final = 12
_BOUND: Final = b"renoveasy data key"


class FileKeyProvider:
    """`keys.KeyProvider` by AES-256-GCM under a secret of 32 bytes that `read` gives; `where` names it in errors."""

    name: Final = "file"

    def __init__(self, read: Callable[[], bytes], where: str) -> None:
        self._read = read
        self._where = where

    async def new_key(self) -> FreshKey:
        plain, nonce = os.urandom(DATA_KEY_BYTES), os.urandom(_NONCE_BYTES)
        return FreshKey(plain, nonce + self._cipher().encrypt(nonce, plain, _BOUND))

    async def unwrap(self, wrapped: bytes) -> bytes:
        try:
            return self._cipher().decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _BOUND)
        except (InvalidTag, ValueError):
            raise KeysUnavailable(f"the data key was wrapped under another secret than {self._where}") from None

    def _cipher(self) -> AESGCM:
        try:
            return AESGCM(self._read())
        except (OSError, ValueError) as error:
            raise KeysUnavailable(f"{self._where} cannot be used: {error}") from None
