"""What became of the mutants, as JSON and as a page to read."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec


class Fate(msgspec.Struct):
    """What became of one mutant. `how`: killed, argued or survived; `by`: the test, or the reason."""

    file: str
    line: int
    kind: str
    name: str
    how: str
    by: str
    said: str = ""
    ran: int = 0
    seconds: float = 0.0
    reached: bool = True


def write(folder: Path, fates: Sequence[Fate], about: Mapping[str, Any]) -> None:
    """mutants.json and mutants.md; the page names every mutant that survived or is argued."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mutants.md").write_text(page(fates, about))
    rows = [msgspec.to_builtins(fate) for fate in fates]
    (folder / "mutants.json").write_text(
        json.dumps({**about, "files": figures(fates), "mutants": rows}, indent=1) + "\n"
    )


def figures(fates: Sequence[Fate]) -> dict[str, dict[str, Any]]:
    """The numbers of each file."""
    found: dict[str, dict[str, Any]] = {}
    for file in dict.fromkeys(fate.file for fate in fates):
        mine = [fate for fate in fates if fate.file == file]
        hows = Counter(fate.how for fate in mine)
        killers = Counter(fate.by for fate in mine if fate.how == "killed")
        found[file] = {
            "mutants": len(mine),
            "killed": hows["killed"],
            "argued": hows["argued"],
            "survived": hows["survived"],
            "rate": round((hows["killed"] + hows["argued"]) / len(mine), 4),
            "tests_that_killed": len(killers),
            "seconds": round(sum(fate.seconds for fate in mine), 1),
            "killed_by": dict(killers.most_common()),
        }
    return found


def page(fates: Sequence[Fate], about: Mapping[str, Any]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in about.items())
    out = ["# Mutants", "", f"{said}. How to read it: docs/mutation.md.", ""]
    out += [
        "| file | mutants | killed | argued | survived | tests that killed | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    numbers = figures(fates)
    out += [
        f"| {file} | {n['mutants']} | {n['killed']} | {n['argued']} | {n['survived']} | {n['tests_that_killed']} "
        f"| {n['seconds']:.0f} |"
        for file, n in numbers.items()
    ]
    for title, how in (("Survived", "survived"), ("Argued", "argued")):
        out += _listed(title, [fate for fate in fates if fate.how == how])
    out += ["", "## Killed by which test", ""]
    for file, n in numbers.items():
        out += [f"### {file}", "", "| mutants | first failure |", "|--:|---|"]
        out += [f"| {count} | {test} |" for test, count in n["killed_by"].items()]
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def _listed(title: str, fates: Sequence[Fate]) -> list[str]:
    out = ["", f"## {title}", ""]
    if not fates:
        return [*out, "None."]
    for file in dict.fromkeys(fate.file for fate in fates):
        out += [f"### {file}", ""]
        reasons: dict[str, list[Fate]] = {}
        for fate in fates:
            if fate.file == file:
                reasons.setdefault(fate.by, []).append(fate)
        for why, mine in reasons.items():
            out += [why, ""] if why else []
            out += [
                f"- line {fate.line}, `{fate.name}`" + ("" if fate.reached else " (no test runs it)") for fate in mine
            ]
            out.append("")
    return out[:-1]
