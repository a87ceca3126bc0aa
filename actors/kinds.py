"""The aggregates that hosts hold, by the kind of their streams."""

from collections.abc import Mapping
from typing import Any, Final

from domain.orders import ORDERS

from domain.aggregate import Rules
from domain.chat import CHAT

RULES: Final[Mapping[str, Rules[Any, Any]]] = {"conversation": CHAT, "order": ORDERS}
