"""`domain.places.GeoLocator`: in memory, and from a MaxMind database that is written here."""

from pathlib import Path

import pytest

from domain.places import GeoLocator, Place
from storage.places import MaxMindPlaces
from tests.support.memory_devices import MemoryPlaces
from tests.support.mmdb import write_mmdb

SHANGHAI = Place("CN", "Shanghai", 31.2, 121.5)
BERLIN = Place("DE", "Berlin", 52.5, 13.4)
RECORDS = {
    "198.51.100.0/24": {
        "country": {"iso_code": "CN"},
        "city": {"names": {"en": "Shanghai"}},
        "location": {"latitude": 31.2304, "longitude": 121.4737},
    },
    "2001:db8::/32": {
        "country": {"iso_code": "DE"},
        "city": {"names": {"en": "Berlin"}},
        "location": {"latitude": 52.52, "longitude": 13.405},
    },
    "203.0.113.0/24": {"country": {"iso_code": "FR"}},
}


@pytest.fixture(params=["memory", "mmdb"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> GeoLocator:
    if request.param == "memory":
        return MemoryPlaces({"198.51.100.0/24": SHANGHAI, "2001:db8::/32": BERLIN, "203.0.113.0/24": Place("FR")})
    return MaxMindPlaces(write_mmdb(tmp_path / "places.mmdb", RECORDS))


@pytest.mark.parametrize(
    ("ip", "place"),
    [
        ("198.51.100.7", SHANGHAI),
        ("2001:db8:1:2::/64", BERLIN),
        ("2001:db8::1", BERLIN),
        ("203.0.113.1", Place("FR")),
        ("192.0.2.1", Place()),
        ("unknown", Place()),
        ("", Place()),
        ("1.2.3", Place()),
        ("'; drop table", Place()),
    ],
)
def test_an_address_has_a_coarse_place_or_none(places: GeoLocator, ip: str, place: Place) -> None:
    assert places.locate(ip) == place


@pytest.mark.parametrize(
    "record",
    [
        "Berlin",
        {},
        {"country": "DE"},
        {"country": {"iso_code": 49}, "city": {"names": ["Berlin"]}},
        {"country": {"iso_code": "Germany"}},
        {"location": {"latitude": 91.0, "longitude": 0.0}},
        {"location": {"latitude": 52.5}},
    ],
)
def test_a_record_that_makes_no_sense_is_no_place(tmp_path: Path, record: object) -> None:
    places = MaxMindPlaces(write_mmdb(tmp_path / "odd.mmdb", {"198.51.100.0/24": record}))
    assert places.locate("198.51.100.7") == Place()


def test_a_database_of_ipv4_knows_no_place_of_an_ipv6_address(tmp_path: Path) -> None:
    places = MaxMindPlaces(
        write_mmdb(tmp_path / "4.mmdb", {"198.51.100.0/24": RECORDS["203.0.113.0/24"]}, ip_version=4)
    )
    assert places.locate("198.51.100.7") == Place("FR")
    assert places.locate("2001:db8::/64") == Place()


@pytest.mark.parametrize("content", [b"", b"not a database", None])
def test_a_file_that_is_no_database_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.mmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.mmdb"):
        MaxMindPlaces(path)


def test_a_file_that_is_damaged_inside_knows_nothing_and_raises_nothing(tmp_path: Path) -> None:
    path = write_mmdb(tmp_path / "damaged.mmdb", RECORDS)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"iso_code")
    raw[at - 1 : at + 30] = b"\xff" * 31
    path.write_bytes(raw)
    assert MaxMindPlaces(path).locate("198.51.100.7") == Place()


def berlin_in(path: Path) -> Path:
    """A file beside it that says something else of the same network."""
    return write_mmdb(path.with_suffix(".new"), {"198.51.100.0/24": RECORDS["2001:db8::/32"]})


def test_a_new_file_is_read_within_the_time_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = write_mmdb(tmp_path / "places.mmdb", RECORDS), [100.0]
    places = MaxMindPlaces(path, 60.0, lambda: now[0])
    assert places.locate("198.51.100.7") == SHANGHAI
    (tmp_path / "broken").write_bytes(b"half a file" * 100)
    (tmp_path / "broken").replace(path)
    now[0] += 61
    assert places.locate("198.51.100.7") == SHANGHAI
    assert places.locate("198.51.100.7") == SHANGHAI
    assert len([record for record in caplog.records if "file before" in record.getMessage()]) == 1
    berlin_in(path).replace(path)
    assert places.locate("198.51.100.7") == SHANGHAI, "it was looked at a moment ago"
    now[0] += 61
    assert places.locate("198.51.100.7") == BERLIN
    path.unlink()
    now[0] += 61
    assert places.locate("198.51.100.7") == BERLIN
    places.close()
