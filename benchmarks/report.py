"""What is shown and kept: lines while it runs, tables at its end, and a JSON file per scenario."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Spread
from benchmarks.scenarios.chat import Held
from benchmarks.summary import (
    Round,
    at_rest,
    builtins,
    chat_summary,
    floors_summary,
    flush_summary,
    held_summary,
    idle_summary,
    ratios,
    rest_faults,
    rest_summary,
)


class Progress:
    """Says what is going on; while something runs, one line that changes, on a terminal only."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._console = Console(highlight=False, soft_wrap=True, width=None if self._live else 160)
        self._head = ""

    def say(self, text: str) -> None:
        self._clear()
        self._head = ""
        self._console.print(text, markup=False)

    def begin(self, text: str) -> None:
        """What follows belongs to this, until the next `say`."""
        self._head = text
        if self._live:
            self.tell("")
        else:
            self._console.print(f"{text} …", markup=False)

    def tell(self, text: str) -> None:
        """How far it is. Cheap: it is called while something is measured."""
        if self._live:
            sys.stdout.write(f"\r\x1b[2K{self._head} … {text}")
            sys.stdout.flush()

    def _clear(self) -> None:
        if self._live and self._head:
            sys.stdout.write("\r\x1b[2K")

    def tables(self, rounds: Sequence[Round]) -> None:
        """Everything that was measured."""
        self._clear()
        for table, faults in (_floors(rounds), _flush(rounds), _idle(rounds), _chat(rounds), _rest(rounds)):
            if table is None:
                continue
            self._console.print()
            self._console.print(table)
            for name, texts in faults.items():
                if texts:
                    self._console.print(f"  {name}: {'; '.join(texts)}", style="yellow", markup=False)


def shown(figure: Spread | None, digits: int = 1) -> str:
    """`3.2 (2.9–4.1)`: median, least and greatest, from 100 on without decimals; a dash for what was not measured."""
    if figure is None:
        return "–"
    median, low, high = (
        f"{value:,.{0 if value >= 100 else digits}f}" for value in (figure.median, figure.min, figure.max)
    )
    return median if figure.rounds == 1 else f"{median} ({low}–{high})"


Shown = tuple[Table | None, dict[str, list[str]]]


def holding(held: Held) -> str:
    """The sessions and what each takes, on one line."""
    several = "s" if held.gateways > 1 else ""
    return (
        f"{held.sessions:,} sessions on {held.gateways} gateway{several}, {held.conversations:,} live conversations: "
        f"{held.gateway_kib_per_session:.1f} KiB a session in the gateways, {held.all_kib_per_session:.1f} in all processes"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _floors(rounds: Sequence[Round]) -> Shown:
    if not any(each.floors for each in rounds):
        return None, {}
    figures = floors_summary(rounds)
    table = _table("The machine itself", "", "p50 ms", "p99 ms", "CPU-ms each")
    table.add_row("loopback round trip", shown(figures["round_trip_p50_ms"], 3), "", "")
    table.add_row(
        "fdatasync of 4 KiB", shown(figures["fdatasync_p50_ms"], 2), shown(figures["fdatasync_p99_ms"], 2), ""
    )
    cpu = shown(figures["echo_cpu_s_per_1000"], 3)  # seconds per 1,000 are milliseconds each
    table.add_row("echo on websockets", shown(figures["echo_p50_ms"], 2), shown(figures["echo_p99_ms"], 2), cpu)
    return table, {"floors": [f"round {r.number} {t}" for r in rounds if r.floors for t in r.floors.faults]}


def _flush(rounds: Sequence[Round]) -> Shown:
    found = [each.flush for each in rounds if each.flush]
    if not found:
        return None, {}
    figures = flush_summary(rounds)
    columns = ("events/s", "flush p50 ms", "p99 ms", "CPU-ms an event", "the server's")
    table = _table("Flushes of 256 events with their projections, one after the other", "", *columns)
    table.add_row(
        found[0].database,
        shown(figures["events_per_s"], 0),
        shown(figures["flush_p50_ms"]),
        shown(figures["flush_p99_ms"]),
        shown(figures["client_cpu_ms"], 3),
        shown(figures["server_cpu_ms"], 3),
    )
    return table, {"flush": [f"round {r.number} {t}" for r in rounds if r.flush for t in r.flush.faults]}


def _idle(rounds: Sequence[Round]) -> Shown:
    found = [each.idle for each in rounds if each.idle]
    if not found:
        return None, {}
    figures = idle_summary(rounds)
    table = _table(f"B3 idle: {found[0].sessions:,} authenticated sessions", "", "")
    table.add_row("PSS a session, gateways", f"{shown(figures['gateway_kib_per_session'])} KiB")
    table.add_row("PSS a session, all processes", f"{shown(figures['all_kib_per_session'])} KiB")
    table.add_row("PSS of all gateways", f"{shown(figures['gateway_mib'])} MiB")
    table.add_row("PSS of all processes", f"{shown(figures['all_mib'])} MiB")
    table.add_row("logged in and connected", f"{shown(figures['connected_per_s'], 0)} a second")
    idle_cpu = figures["idle_cpu"]
    table.add_row("CPU while idle", "–" if idle_cpu is None else f"{shown(idle_cpu, 3)} cores")
    return table, {"idle": [f"round {r.number} {t}" for r in rounds if r.idle for t in r.idle.faults]}


def _chat(rounds: Sequence[Round]) -> Shown:
    summary = chat_summary(rounds)
    if not summary.rates:
        return None, {}
    columns = ("delivery p50 ms", "p99 ms", "p99.9 ms", "ack p50 ms", "p99 ms", "CPU-s per 1,000", "generator")
    table = _table("B1 one-to-one durable chat, from the scheduled send", "msg/s", *columns)
    for rate, figures in summary.rates.items():
        names = ("delivery_p50_ms", "delivery_p99_ms", "delivery_p999_ms", "ack_p50_ms", "ack_p99_ms")
        cells = [shown(figures[name]) for name in names]
        busy = figures["generator_busy"]
        cells += [shown(figures["server_cpu_s_per_1000"], 3), "–" if busy is None else f"{busy.max:.0%}"]
        table.add_row(f"{float(rate):,.0f}", *cells)
    table.caption_justify = "left"
    lines = [f"highest rate with p99 ≤ 50 ms: {shown(summary.highest_rate, 0)} msg/s"]
    rate, roles = list(summary.cpu_s_per_1000.items())[-1]
    largest = sorted(((found.median, role) for role, found in roles.items() if found), reverse=True)[:5]
    if largest:
        lines.append(
            f"CPU-s per 1,000 at {float(rate):,.0f} msg/s: " + ", ".join(f"{role} {cpu:.3f}" for cpu, role in largest)
        )
    held = held_summary(rounds)
    if held["sessions"] is not None:
        lines.append(
            f"{held['sessions'].median:,.0f} sessions and their conversations: "
            f"{shown(held['gateway_kib_per_session'])} KiB a session in the gateways, "
            f"{shown(held['all_kib_per_session'])} in all processes"
        )
    if (rest := at_rest(rounds)) is not None:
        lines.append(f"before anybody connected the platform used {shown(rest, 2)} cores, which is in these figures")
    compared = ratios(rounds)
    if compared["delivery_to_floor"] is not None:
        lines.append(
            f"delivery p50 at 1,000 msg/s is {shown(compared['delivery_to_floor'])} × (round trip + fdatasync)"
        )
    if compared["cpu_to_echo"] is not None:
        lines.append(f"CPU of a durable message is {shown(compared['cpu_to_echo'])} × that of a bare echo")
    table.caption = "\n".join(lines)
    return table, summary.faults


def _rest(rounds: Sequence[Round]) -> Shown:
    steps = [step for each in rounds for step in each.rest]
    if not steps:
        return None, {}
    columns = ("req/s", "p50 ms", "p95 ms", "p99 ms", "of live", "CPU-s per 1,000", "generator")
    table = _table(f"B6 REST, {steps[0].connections} connections, closed loop", "", *columns)
    for kind, figures in rest_summary(rounds).items():
        busy, live = figures["generator_busy"], figures["of_live"]
        table.add_row(
            kind.replace("_", " "),
            shown(figures["per_s"], 0),
            *(shown(figures[name]) for name in ("p50_ms", "p95_ms", "p99_ms")),
            "–" if live is None else f"{live.median:.0%}",
            shown(figures["server_cpu_s_per_1000"], 3),
            "–" if busy is None else f"{busy.max:.0%}",
        )
    return table, rest_faults(rounds)


# --- results -----------------------------------------------------------------------------------------------------


def save(
    folder: Path, began: str, machine: dict[str, Any], plan: dict[str, Any], rounds: Sequence[Round]
) -> list[Path]:
    """Write a file per scenario that was measured, named after the date; returns them. None is ever written over."""
    found: list[tuple[str, str, Any]] = []
    if any(each.flush for each in rounds):
        found.append(("flush", "flush", flush_summary(rounds)))
    if any(each.idle for each in rounds):
        found.append(("idle", "B3", idle_summary(rounds)))
    if any(each.chat for each in rounds):
        found.append(
            ("chat", "B1", {"by_rate": chat_summary(rounds), "held": held_summary(rounds), "ratios": ratios(rounds)})
        )
    if any(each.rest for each in rounds):
        found.append(("rest", "B6", rest_summary(rounds)))
    folder.mkdir(parents=True, exist_ok=True)
    stamp = began.replace(":", "").replace("-", "")[:15] + "Z"
    paths = []
    for name, identifier, figures in found:
        content = {
            "scenario": name,
            "id": identifier,
            "began": began,
            "machine": machine,
            "plan": plan,
            "summary": builtins(figures),
            "floors": builtins(floors_summary(rounds)),
            "at_rest_cores": builtins(at_rest(rounds)),
            "rounds": [_of(each, name) for each in rounds],
        }
        path = folder / f"{stamp}-{name}.json"
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        draft.replace(path)
        paths.append(path)
    return paths


def _of(each: Round, scenario: str) -> dict[str, Any]:
    whole: dict[str, Any] = builtins(each)
    others = {"flush", "idle", "chat", "rest", "held"} - ({scenario, "held"} if scenario == "chat" else {scenario})
    return {name: value for name, value in whole.items() if name not in others}
