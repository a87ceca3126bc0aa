"""Places of addresses, from a MaxMind database (`.mmdb`): GeoLite2-City, DB-IP City Lite, or one of the same form."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import maxminddb

from domain.places import Place, coarse

LOOK_S: Final = 60.0
"""How old the last look at the file may be when a place is asked for."""
_log = logging.getLogger(__name__)


class MaxMindPlaces:
    """`domain.places.GeoLocator`. The file is mapped into memory when this is made, and asked without waiting.

    A file that has taken its place is mapped within `look_s` of use; one that cannot be read changes nothing. Replace the
    file by renaming a new one, as `geoipupdate` does: what is mapped must not be written over.
    """

    def __init__(self, path: Path, look_s: float = LOOK_S, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError, naming the file, where there is none or it is no such database."""
        self._path = path
        self._look_s = look_s
        self._monotonic_s = monotonic_s
        self._seen = _version(path)
        self._look_at_s = monotonic_s() + look_s
        self._reader = _opened(path)

    def locate(self, ip: str) -> Place:
        if self._monotonic_s() >= self._look_at_s:
            self._look()
        try:
            found: Any = self._reader.get(ip.partition("/")[0])
        except ValueError:
            return Place()  # no address, or an IPv6 one in a database of IPv4
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            _log.warning("the place of an address cannot be read: %s", error)
            return Place()
        country, location = _part(found, "country"), _part(found, "location")
        city = _part(_part(found, "city"), "names").get("en")
        return coarse(country.get("iso_code"), city, location.get("latitude"), location.get("longitude"))

    def _look(self) -> None:
        self._look_at_s = self._monotonic_s() + self._look_s
        version = _version(self._path)
        if version in (None, self._seen):
            return
        self._seen = version  # one that cannot be read is tried again when it changes again
        try:
            reader = _opened(self._path)
        except ValueError as error:
            _log.warning("places are still those of the file before: %s", error)
            return
        former, self._reader = self._reader, reader
        former.close()
        _log.info("places are read from a new %s", self._path)

    def close(self) -> None:
        self._reader.close()


def _opened(path: Path) -> maxminddb.Reader:
    try:
        return maxminddb.open_database(path)
    except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
        raise ValueError(f"{path} is not a readable .mmdb file: {error}") from error


def _version(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from another one in its place; None where there is none just now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _part(record: Any, name: str) -> dict[str, Any]:
    part = record.get(name) if isinstance(record, dict) else None
    return part if isinstance(part, dict) else {}
