"""From rounds to the figures that are told: median, least and greatest, without what is void, and ratios to the floors."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from benchmarks.figures import Latency, Spread, highest_sustained, spread
from benchmarks.scenarios.chat import ChatStep, Held
from benchmarks.scenarios.floors import Floors
from benchmarks.scenarios.flush import FlushStep
from benchmarks.scenarios.idle import Idle
from benchmarks.scenarios.rest import RestStep

T = TypeVar("T")
COMPARED_RATE = 1_000.0
Figures = dict[str, Spread | None]


class Round(msgspec.Struct):
    """What one round has measured; a scenario that was not asked for is empty."""

    number: int
    started_s: float = 0.0
    """How long the platform took until it was ready."""
    at_rest: dict[str, float] | None = None
    """Cores that the platform used before anybody connected, by role."""
    pinned: bool = False
    floors: Floors | None = None
    flush: FlushStep | None = None
    idle: Idle | None = None
    chat: list[ChatStep] = []
    held: Held | None = None
    rest: list[RestStep] = []


class ChatSummary(msgspec.Struct):
    """By rate, and of the CPU also by role; and the highest rate that was sustained in each round."""

    rates: dict[str, Figures]
    cpu_s_per_1000: dict[str, Figures]
    highest_rate: Spread | None
    faults: dict[str, list[str]]


def chat_summary(rounds: Sequence[Round]) -> ChatSummary:
    steps = [step for each in rounds for step in each.chat]
    rates = sorted({step.rate for step in steps})
    return ChatSummary(
        {_rate(rate): _chat_figures([step for step in steps if step.rate == rate]) for rate in rates},
        {_rate(rate): _by_role([step for step in steps if step.rate == rate]) for rate in rates},
        spread([highest_sustained([(s.rate, s.sustained) for s in each.chat]) for each in rounds if each.chat]),
        _faults([(_rate(step.rate), each.number, step.faults) for each in rounds for step in each.chat]),
    )


def held_summary(rounds: Sequence[Round]) -> Figures:
    """What B1's sessions and live conversations take."""
    found = [each.held for each in rounds if each.held is not None]
    return {
        "sessions": spread([held.sessions for held in found]),
        "gateways": spread([held.gateways for held in found]),
        "gateway_kib_per_session": spread([held.gateway_kib_per_session for held in found]),
        "all_kib_per_session": spread([held.all_kib_per_session for held in found]),
        "all_mib": spread([held.all_mib for held in found]),
    }


def _chat_figures(steps: Sequence[ChatStep]) -> Figures:
    good = [step for step in steps if not step.usage.void]
    return {
        "delivery_p50_ms": _of(good, lambda step: step.delivery, "p50_ms"),
        "delivery_p99_ms": _of(good, lambda step: step.delivery, "p99_ms"),
        "delivery_p999_ms": _of(good, lambda step: step.delivery, "p999_ms"),
        "ack_p50_ms": _of(good, lambda step: step.ack, "p50_ms"),
        "ack_p99_ms": _of(good, lambda step: step.ack, "p99_ms"),
        "reached_per_s": spread([step.reached_per_s for step in good]),
        "server_cpu_s_per_1000": spread([step.server_cpu_s_per_1000 for step in good]),
        "generator_busy": spread([step.usage.generator_busy for step in steps]),
    }


def _by_role(steps: Sequence[ChatStep]) -> Figures:
    good = [step.by_role_cpu_s_per_1000 for step in steps if not step.usage.void]
    return {
        role: spread([each.get(role) for each in good])
        for role in dict.fromkeys(role for each in good for role in each)
    }


def at_rest(rounds: Sequence[Round]) -> Spread | None:
    """Cores that the platform used before anybody connected."""
    return spread([None if each.at_rest is None else sum(each.at_rest.values()) for each in rounds])


def rest_summary(rounds: Sequence[Round]) -> dict[str, Figures]:
    """By kind; `of_live` compares the rate with the no-op's of the same round."""
    found: dict[str, Figures] = {}
    for kind in dict.fromkeys(step.kind for each in rounds for step in each.rest):
        good = [step for each in rounds for step in each.rest if step.kind == kind and not step.usage.void]
        found[kind] = {
            "per_s": spread([step.per_s for step in good]),
            "p50_ms": _of(good, lambda step: step.latency, "p50_ms"),
            "p95_ms": _of(good, lambda step: step.latency, "p95_ms"),
            "p99_ms": _of(good, lambda step: step.latency, "p99_ms"),
            "of_live": spread([_of_live(each, kind) for each in rounds]),
            "server_cpu_s_per_1000": spread([step.server_cpu_s_per_1000 for step in good]),
            "generator_busy": spread(
                [step.usage.generator_busy for each in rounds for step in each.rest if step.kind == kind]
            ),
        }
    return found


def _of_live(each: Round, kind: str) -> float | None:
    rates = {step.kind: step.per_s for step in each.rest if not step.usage.void}
    return rates[kind] / rates["live"] if kind in rates and rates.get("live") else None


def rest_faults(rounds: Sequence[Round]) -> dict[str, list[str]]:
    return _faults([(step.kind, each.number, step.faults) for each in rounds for step in each.rest])


def idle_summary(rounds: Sequence[Round]) -> Figures:
    found = [each.idle for each in rounds if each.idle is not None]
    return {
        "gateway_kib_per_session": spread([idle.gateway_kib_per_session for idle in found]),
        "all_kib_per_session": spread([idle.all_kib_per_session for idle in found]),
        "gateway_mib": spread([idle.gateway_mib for idle in found]),
        "all_mib": spread([idle.all_mib for idle in found]),
        "connected_per_s": spread([idle.connected_per_s for idle in found]),
        "idle_cpu": spread([idle.idle_cpu for idle in found]),
    }


def flush_summary(rounds: Sequence[Round]) -> Figures:
    found = [each.flush for each in rounds if each.flush is not None]
    return {
        "events_per_s": spread([step.events_per_s for step in found]),
        "flush_p50_ms": _of(found, lambda step: step.flush, "p50_ms"),
        "flush_p99_ms": _of(found, lambda step: step.flush, "p99_ms"),
        "client_cpu_ms": spread([step.client_cpu_ms for step in found]),
        "server_cpu_ms": spread([step.server_cpu_ms for step in found]),
    }


def floors_summary(rounds: Sequence[Round]) -> Figures:
    found = [each.floors for each in rounds if each.floors is not None]
    return {
        "round_trip_p50_ms": _of(found, lambda floors: floors.round_trip, "p50_ms"),
        "fdatasync_p50_ms": _of(found, lambda floors: floors.fdatasync, "p50_ms"),
        "fdatasync_p99_ms": _of(found, lambda floors: floors.fdatasync, "p99_ms"),
        "echo_p50_ms": _of(found, lambda floors: floors.echo, "p50_ms"),
        "echo_p99_ms": _of(found, lambda floors: floors.echo, "p99_ms"),
        "echo_cpu_s_per_1000": spread([floors.echo_cpu_s_per_1000 for floors in found]),
    }


def ratios(rounds: Sequence[Round]) -> Figures:
    """What the platform takes beyond the machine, from figures of the same round.

    `delivery_to_floor`: the delivery's p50 at `COMPARED_RATE` by a round trip and a sync. `cpu_to_echo`: CPU per durable
    message by that of a bare echo, at the same rate both.
    """
    to_floor, to_echo = list[float | None](), list[float | None]()
    for each in rounds:
        step = next((step for step in each.chat if step.rate == COMPARED_RATE and not step.usage.void), None)
        if step is None or each.floors is None:
            continue
        floor, echo = each.floors.durable_floor_ms, each.floors.echo_cpu_s_per_1000
        if floor and step.delivery is not None:
            to_floor.append(step.delivery.p50_ms / floor)
        if echo and step.server_cpu_s_per_1000 is not None:
            to_echo.append(step.server_cpu_s_per_1000 / echo)
    return {"delivery_to_floor": spread(to_floor), "cpu_to_echo": spread(to_echo)}


def _of(items: Sequence[T], latency: Callable[[T], Latency | None], figure: str) -> Spread | None:
    found = (latency(item) for item in items)
    return spread([getattr(each, figure) for each in found if each is not None])


def _faults(found: Sequence[tuple[str, int, list[str]]]) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {}
    for name, number, texts in found:
        for text in texts:
            faults.setdefault(name, []).append(f"round {number} {text}")
    return faults


def _rate(rate: float) -> str:
    return f"{rate:g}"


def builtins(value: Any) -> Any:
    """The value as JSON knows it."""
    return msgspec.to_builtins(value)
