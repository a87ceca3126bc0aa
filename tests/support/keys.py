"""Data keys for tests: fixed ones for databases of a test's own, and those of a platform's data folder."""

import hashlib
from pathlib import Path

from deploy.connections import SystemClock
from domain.ports import StoreUnavailable
from storage.cache import PhoneNames
from storage.crypto import FieldCipher
from storage.engine import Database
from storage.file_keys import FileKeyProvider
from storage.key_ring import SqlKeyRing


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


PHONE_NAMES = PhoneNames(b"p" * 32)
"""How the tests' platforms name phones in Redis."""


class FixedKeys:
    """`crypto.CipherSource` of keys that are all known from the start: every process of a test has the same."""

    def __init__(self, *numbers: int) -> None:
        self._cipher = FieldCipher({number: key(f"data key {number}") for number in numbers or (1,)}, key("index"))

    async def cipher(self) -> FieldCipher:
        return self._cipher

    async def newest(self) -> FieldCipher:
        return self._cipher

    async def reloaded(self) -> FieldCipher:
        return self._cipher

    async def knowing(self, number: int) -> FieldCipher:
        if number not in self._cipher.numbers:
            raise StoreUnavailable(f"there is no data key {number}")
        return self._cipher


def ring_of(database: Database, folder: Path) -> SqlKeyRing:
    """The data keys of a platform whose data folder this is, wrapped by the secret in its `keys`, as the platform does it."""
    from deploy.keys import key_ring
    from deploy.settings import from_environment

    return key_ring(from_environment({"RENOVEASY_DATA_DIR": str(folder)}), database)


def file_ring(database: Database, secret: bytes = b"m" * 32) -> SqlKeyRing:
    """A key ring over a database of the test's own, wrapped under a secret that the test has."""
    provider = FileKeyProvider(lambda: secret, "the test's secret")
    return SqlKeyRing(database, {"file": provider}, "file", SystemClock())
