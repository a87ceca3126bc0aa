"""Bugs that are planted on purpose: the simulation must find every one of them."""

from typing import Final

from tests.support.simulated_parts import Wiring

PLANTED: Final[dict[str, type[Wiring]]] = {}
