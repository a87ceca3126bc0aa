"""The aggregates that hosts hold, by the kind of their streams."""

from collections.abc import Mapping
from typing import Any

from domain.aggregate import Rules
from domain.chat import CHAT
from domain.orders import OrderRules
from domain.policy import DEFAULT_POLICY, Policy

Kinds = Mapping[str, Rules[Any, Any]]


def kinds(pepper: bytes, policy: Policy = DEFAULT_POLICY) -> Kinds:
    """The rules of every kind; `pepper` is the platform's secret that goes into check-in codes."""
    return {"conversation": CHAT, "order": OrderRules(policy, pepper)}
