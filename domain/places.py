"""Where a device was seen: an address, what its client calls itself, and roughly which place that is."""

import re
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, Protocol

import msgspec

_NUMBERS: Final = re.compile(r"\d[\d._]*")
_STRANGE: Final = re.compile(r"[^\x20-\x7e]")
_AGENT_CHARS: Final = 200


def network_of(address: str) -> str:
    """An address as it is counted and written down: an IPv6 one as its /64, `unknown` for what is none.

    An IPv6 address that only wraps an IPv4 one (mapped, 6to4, Teredo) is that one: who has a single IPv4 address would else
    have 65,536 networks.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return "unknown"
    if not isinstance(parsed, IPv6Address):
        return address
    wrapped = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
    return str(wrapped or ip_network((parsed, 64), strict=False))


class Place(msgspec.Struct, frozen=True):
    """A coarse place: an ISO 3166 country, a city, degrees to one decimal (some 10 km). Empty and None: unknown."""

    country: str = ""
    city: str = ""
    lat: float | None = None
    lon: float | None = None


class Seen(msgspec.Struct, frozen=True):
    """How a device came last: its address (an IPv6 one as its /64), its user agent without numbers, its place."""

    ip: str = ""
    agent: str = ""
    place: Place = Place()


class GeoLocator(Protocol):
    """Tells where an address is. Never raises: whatever it does not know, or cannot read, is `Place()`."""

    def locate(self, ip: str) -> Place:
        """`ip` is an address, or an IPv6 network such as `2001:db8::/64`."""
        ...


class NoPlaces:
    """A `GeoLocator` that knows no place."""

    def locate(self, ip: str) -> Place:
        return Place()


def agent_of(user_agent: str) -> str:
    """A user agent as it is compared: without the numbers, which change with every update of an app or a system."""
    return _NUMBERS.sub("", _STRANGE.sub("", user_agent))[:_AGENT_CHARS].strip()


def coarse(country: object, city: object, lat: object, lon: object) -> Place:
    """The place that somebody's data names, as far as it makes sense."""
    known = isinstance(country, str) and re.fullmatch(r"[A-Z]{2}", country) is not None
    spot = _degrees(lat, 90), _degrees(lon, 180)
    both = None not in spot
    return Place(
        country=str(country) if known else "",
        city=city[:120] if isinstance(city, str) else "",
        lat=spot[0] if both else None,
        lon=spot[1] if both else None,
    )


def _degrees(value: object, most: int) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most
    return round(float(value), 1) if usable else None  # type: ignore[arg-type]
