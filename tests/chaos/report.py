"""What a run of the chaos suite has found: a row for every line of the catalogue, as JSON and as a table."""

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

SHORT, FULL = "short", "full"
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"
CATALOGUE = tuple(f"R{number}" for number in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18))
"""What is done to real processes; docs/reliability.md says what each of them is."""


class Row(msgspec.Struct):
    """One test's outcome. `id` is the catalogue's, `figures` whatever it measured, each name with its unit."""

    id: str
    what: str
    test: str
    verdict: str = PASSED
    why: str = ""
    """Why it was skipped, or how it failed."""
    load: str = ""
    repeats: int = 0
    seconds: float = 0.0
    figures: dict[str, Any] = {}


class Report(msgspec.Struct):
    """All rows of a run, and on what they were found."""

    form: str
    began: str
    revision: str
    machine: dict[str, Any]
    rows: list[Row] = []

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == FAILED]


def begin(form: str, revision: str, machine: Mapping[str, Any]) -> Report:
    """An empty report. `machine` says what it runs on, beside the versions known here."""
    found = {"python": platform.python_version(), "system": platform.platform(), **machine}
    return Report(form, datetime.now(UTC).isoformat(timespec="seconds"), revision, found)


def table(report: Report) -> str:
    """The report as Markdown: one line per row, then why rows were skipped or failed."""
    rows = sorted(report.rows, key=lambda row: (_number(row.id), row.id, row.test))
    lines = [
        f"# Chaos, {report.form} form",
        "",
        f"{report.began}, revision {report.revision}; "
        + ", ".join(f"{key} {value}" for key, value in report.machine.items()),
        "",
        "| id | what | load | repeats | seconds | figures | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.id, row.what, row.load, str(row.repeats or ""), f"{row.seconds:.0f}", figures(row.figures)]
        lines.append("| " + " | ".join(_cell(cell) for cell in [*cells, row.verdict]) + " |")
    notes = [f"- {row.id} {row.verdict}: {row.why} (`{row.test}`)" for row in rows if row.why]
    return "\n".join([*lines, "", *notes, ""]) if notes else "\n".join([*lines, ""])


def figures(found: Mapping[str, Any]) -> str:
    """Figures on one line, nested names joined with a dot; what was not measured is left out."""
    parts = []
    for name, value in found.items():
        each = (
            {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, Mapping) else {name: value}
        )
        parts += [f"{key} {_shown(item)}" for key, item in each.items() if _measured(item) is not None]
    return "; ".join(parts)


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """The JSON and the table, named by the time the run began."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = report.began.replace("-", "").replace(":", "").replace("+0000", "Z") + f"-{report.form}"
    data, text = folder / f"{stem}.json", folder / f"{stem}.md"
    data.write_text(json.dumps(_measured(msgspec.to_builtins(report)), indent=1, allow_nan=False) + "\n")
    text.write_text(table(report))
    return data, text


def missing(report: Report, wanted: Sequence[str] = CATALOGUE) -> list[str]:
    """Lines of the catalogue of which the run says nothing."""
    there = {row.id for row in report.rows}
    return [each for each in wanted if each not in there]


def _measured(value: Any) -> Any:
    """The value with None for every number that is none: the figure of something that did not happen."""
    if isinstance(value, Mapping):
        return {key: _measured(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_measured(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(identifier: str) -> int:
    found = re.search(r"[0-9]+", identifier)
    return int(found[0]) if found else 10_000
