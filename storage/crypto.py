"""Single fields, encrypted so that only their own place opens them, and found without being decrypted.

AES-256-GCM (NIST SP 800-38D). What is stored is

    version (1 byte) | number of the data key (4 bytes) | nonce (12 bytes) | ciphertext and tag (16 bytes more than the text)

and the version, the key's number, the table, the row's id and the column are authenticated with it: a ciphertext that was
moved to another row, column or table, or was changed in any byte, opens nowhere.

Nonces are 96 random bits. By the birthday bound n of them collide with a probability below n^2 / 2^97, so 2^32 encryptions
under one key, the most that SP 800-38D section 8.3 allows, stay below 2^-33. `renoveasy reencrypt --new-key` begins a new key.

A blind index is HMAC-SHA-256 under a key of its own, derived for each column: equal texts have equal ones, which finds a
row and keeps it unique, and without the key it says nothing about the text.
"""

import hmac
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.keys import DATA_KEY_BYTES

VERSION: Final = 1
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
HEADER_BYTES: Final = 5
MOST_KEYS: Final = 2**32 - 1


class FieldDamaged(Exception):
    """A stored field is not what was stored there: it was changed, cut off, or moved. Names the place, never the content."""


class UnknownKey(Exception):
    """A field is encrypted under a data key that is not known here; `number` is the key's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"data key {number} is not known")
        self.number = number


class Place(NamedTuple):
    """Where a field stands. `row` is the row's id, which never changes."""

    table: str
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of {self.row}"


class FieldCipher:
    """Data keys by their numbers: the one with the highest number encrypts, all of them decrypt. Safe in any thread."""

    def __init__(
        self,
        keys: Mapping[int, bytes],
        index_key: bytes,
        entropy: Callable[[int], bytes] = os.urandom,
        former_index_key: bytes | None = None,
        index_mark: str = "",
    ) -> None:
        """`keys` and the index keys are secrets of `DATA_KEY_BYTES`; `entropy` gives that many unpredictable bytes.

        `former_index_key` is there while the indexes are moved to another key; `index_mark` tells such states apart.
        """
        if not keys:
            raise ValueError("no data key")
        if any(len(key) != DATA_KEY_BYTES for key in (*keys.values(), index_key, former_index_key or index_key)):
            raise ValueError(f"a data key has {DATA_KEY_BYTES} bytes")
        if not all(0 < number <= MOST_KEYS for number in keys):
            raise ValueError(f"the number of a data key is from 1 to {MOST_KEYS}")
        self._by_number = {number: AESGCM(key) for number, key in keys.items()}
        self.index_key = index_key
        self.former_index_key = former_index_key
        self.index_mark = index_mark
        self._index_keys: dict[tuple[bytes, str, str], bytes] = {}
        self._entropy = entropy
        self.newest = max(keys)

    @property
    def numbers(self) -> frozenset[int]:
        return frozenset(self._by_number)

    def seal(self, place: Place, text: str) -> bytes:
        """The text under the newest key, for this place alone. Two times the same text look nothing alike."""
        header, nonce = header_of(self.newest), self._entropy(NONCE_BYTES)
        return header + nonce + self._by_number[self.newest].encrypt(nonce, text.encode(), _bound(header, place))

    def open(self, place: Place, sealed: bytes) -> str:
        """The text that was sealed for this place.

        Raises:
            FieldDamaged: this is not what was sealed here.
            UnknownKey: it may be, and its key is not known.
        """
        header, nonce = sealed[:HEADER_BYTES], sealed[HEADER_BYTES : HEADER_BYTES + NONCE_BYTES]
        if len(sealed) < HEADER_BYTES + NONCE_BYTES + TAG_BYTES or header[0] != VERSION:
            raise FieldDamaged(f"{place} is not an encrypted field")
        number = int.from_bytes(header[1:])
        if number not in self._by_number:
            raise UnknownKey(number)
        try:
            text = self._by_number[number].decrypt(nonce, sealed[HEADER_BYTES + NONCE_BYTES :], _bound(header, place))
        except InvalidTag:
            raise FieldDamaged(f"{place} was changed outside of the platform, or moved") from None
        return text.decode()

    def blind_index(self, table: str, column: str, text: str) -> bytes:
        """32 bytes, equal for equal texts of the same column, under every data key."""
        return self._blind(self.index_key, table, column, text)

    def blind_indexes(self, table: str, column: str, text: str) -> tuple[bytes, ...]:
        """What the text may be stored under: its index, and behind it the one by the former key while there is one."""
        former = self.former_index_key
        index = self.blind_index(table, column, text)
        return (index,) if former is None else (index, self._blind(former, table, column, text))

    def _blind(self, secret: bytes, table: str, column: str, text: str) -> bytes:
        key = self._index_keys.get((secret, table, column))
        if key is None:
            info = b"renoveasy blind index" + _framed(table, column)
            key = HKDF(hashes.SHA256(), DATA_KEY_BYTES, None, info).derive(secret)
            self._index_keys[secret, table, column] = key
        return hmac.digest(key, text.encode(), sha256)


class CipherSource(Protocol):
    """Where the data keys come from. Every method may raise `StoreUnavailable`: keys are not to be had just now."""

    async def cipher(self) -> FieldCipher:
        """What is known here, at once where anything is."""
        ...

    async def newest(self) -> FieldCipher:
        """The same with the newest key of the platform in it, as far as it is to be had."""
        ...

    async def knowing(self, number: int) -> FieldCipher:
        """The same with that data key in it."""
        ...

    async def reloaded(self) -> FieldCipher:
        """The same with the indexes' keys as they stand now."""
        ...


def seal_content(key: bytes, place: str, content: bytes) -> bytes:
    """A content under a key that seals nothing else, for the place that it is bound to: nonce, ciphertext and tag."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, place.encode())


def open_content(key: bytes, place: str, sealed: bytes) -> bytes:
    """What was sealed for this place. Raises FieldDamaged where it was not."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place.encode())
    except (InvalidTag, ValueError):
        raise FieldDamaged(f"the content of {place} was changed outside of the platform, or moved") from None


def header_of(number: int) -> bytes:
    """What every field begins with that is sealed under this key."""
    return bytes([VERSION]) + number.to_bytes(HEADER_BYTES - 1)


def _bound(header: bytes, place: Place) -> bytes:
    return header + _framed(*place)


def _framed(*parts: str) -> bytes:
    """The parts so that no two different lists of them look the same."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4) + part for part in encoded)
