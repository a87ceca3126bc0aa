"""Identifiers: who may make them, what they carry, and the partition that every one of them names."""

import hashlib
import re
from typing import Final

PARTITIONS: Final = 1024
"""How many partitions there are; fixed when a database is created."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_uuid(text: object) -> bool:
    """True for a canonical lower-case UUID of any version, and for nothing else."""
    return isinstance(text, str) and _UUID.fullmatch(text) is not None


def partition_of(identifier: str) -> int:
    """The partition (0 … 1023) of a stream: the low 10 bits of its UUID."""
    return int(identifier[-3:], 16) & (PARTITIONS - 1)


def uuid7(now_ms: int, entropy: bytes) -> str:
    """A UUIDv7 (RFC 9562, section 5.7) of the given instant from 10 bytes of entropy."""
    value = (now_ms & (1 << 48) - 1) << 80 | int.from_bytes(entropy[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def derived_uuid7(now_ms: int, seed: str, like: str) -> str:
    """A UUIDv7 that depends on its arguments alone and lies in the partition of `like`.

    An order makes the ids of its conversations with it: both live in one partition, one host, one transaction.
    """
    entropy = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:10], "big")
    entropy = entropy & ~(PARTITIONS - 1) | partition_of(like)
    return uuid7(now_ms, entropy.to_bytes(10, "big"))


def uuid7_ms(identifier: str) -> int | None:
    """The Unix milliseconds that a UUIDv7 carries; None for every other version."""
    return int(identifier[:8] + identifier[9:13], 16) if identifier[14] == "7" else None
