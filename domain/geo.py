"""Places on the sphere: distances in metres, bearings in degrees, and cells that hide where exactly something is."""

from math import asin, atan2, cos, degrees, floor, hypot, radians, sin, sqrt
from typing import Final

EARTH_RADIUS_M: Final = 6_371_008.8
"""Mean radius of the WGS84 ellipsoid (IUGG R1)."""

_METRES_PER_DEGREE: Final = 111_195.0


def distance_m(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Great-circle distance in metres between two places in degrees (haversine formula; up to 0.5 % off the ellipsoid)."""
    phi1, phi2 = radians(lat1), radians(lat2)
    half_phi, half_lambda = (phi2 - phi1) / 2, radians(lon2 - lon1) / 2
    a = sin(half_phi) ** 2 + cos(phi1) * cos(phi2) * sin(half_lambda) ** 2
    return 2 * EARTH_RADIUS_M * asin(min(1.0, sqrt(a)))


def bearing_deg(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Initial bearing from the first place to the second: 0 … 360 degrees clockwise from north."""
    phi1, phi2, delta = radians(lat1), radians(lat2), radians(lon2 - lon1)
    east = sin(delta) * cos(phi2)
    north = cos(phi1) * sin(phi2) - sin(phi1) * cos(phi2) * cos(delta)
    return degrees(atan2(east, north)) % 360.0 if hypot(east, north) > 0 else 0.0


def turn_deg(first: float, second: float) -> float:
    """The smaller angle between two headings: 0 … 180 degrees."""
    return abs((second - first + 180.0) % 360.0 - 180.0)


def cell_centre(lat: float, lon: float, size_m: float) -> tuple[float, float]:
    """The centre of the grid cell of about `size_m` by `size_m` metres around a place: equal for all places within it.

    Rows are bands of latitude; each row has its own width in longitude, so that cells are about square everywhere.
    """
    step = size_m / _METRES_PER_DEGREE
    row = min(89.999, max(-89.999, (floor(lat / step) + 0.5) * step))
    width = min(360.0, step / max(cos(radians(row)), 1e-6))
    column = (floor((lon + 180.0) / width) + 0.5) * width - 180.0
    return round(row, 5), round(min(180.0, column), 5)
