"""Writes MaxMind databases (format 2.0) of a few networks: https://maxmind.github.io/MaxMind-DB/."""

import ipaddress
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SEPARATOR = 16


class Short(int):
    """An unsigned 16-bit number."""


class Long(int):
    """An unsigned 64-bit number."""


def write_mmdb(path: Path, networks: Mapping[str, Any], *, ip_version: int = 6) -> Path:
    """A database in which each network (`198.51.100.0/24`, `2001:db8::/32`) has its record."""
    nodes: list[list[Any]] = [[None, None]]
    data = b""
    for text, record in networks.items():
        network = ipaddress.ip_network(text)
        # IPv4 lives under ::/96 of a database of IPv6.
        shift = 96 if network.version == 4 and ip_version == 6 else 0
        bits = 128 if ip_version == 6 else 32
        number, length = int(network.network_address), network.prefixlen + shift
        at = 0
        for depth in range(length):
            bit = (number >> (bits - 1 - depth)) & 1
            if depth == length - 1:
                nodes[at][bit] = ("data", len(data))
            else:
                if nodes[at][bit] is None:
                    nodes.append([None, None])
                    nodes[at][bit] = len(nodes) - 1
                at = nodes[at][bit]
        data += _encoded(record)
    tree = b"".join(struct.pack(">II", *(_pointer(side, len(nodes)) for side in node)) for node in nodes)
    about = {
        "binary_format_major_version": Short(2),
        "binary_format_minor_version": Short(0),
        "build_epoch": Long(1_800_000_000),
        "database_type": "Test-City",
        "description": {"en": "made by a test"},
        "ip_version": Short(ip_version),
        "languages": ["en"],
        "node_count": len(nodes),
        "record_size": Short(32),
    }
    path.write_bytes(tree + bytes(_SEPARATOR) + data + b"\xab\xcd\xefMaxMind.com" + _encoded(about))
    return path


def _pointer(side: Any, node_count: int) -> int:
    if side is None:
        return node_count
    return side[1] + node_count + _SEPARATOR if isinstance(side, tuple) else side


def _encoded(value: Any) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return _control(2, len(raw)) + raw
    if isinstance(value, float):
        return _control(3, 8) + struct.pack(">d", value)
    if isinstance(value, int):
        raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
        kind = 5 if isinstance(value, Short) else 9 if isinstance(value, Long) else 6
        return _control(kind, len(raw)) + raw
    if isinstance(value, dict):
        return _control(7, len(value)) + b"".join(_encoded(key) + _encoded(item) for key, item in value.items())
    return _control(11, len(value)) + b"".join(_encoded(item) for item in value)


def _control(kind: int, size: int) -> bytes:
    assert size < 29 + 256, "the tests need no more"
    first, rest = (size, b"") if size < 29 else (29, bytes([size - 29]))
    return bytes([kind << 5 | first]) + rest if kind <= 7 else bytes([first, kind - 7]) + rest
