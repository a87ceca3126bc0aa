"""Plants every mutant, one at a time, and asks the tests; fails where a file that must be complete is not.

`python -m tests.mutation [FILE …]`: the files that must be complete, or those named; `--all`: all of targets.py.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tests.mutation.argued import argued
from tests.mutation.attempts import Attempts, Reach, Verdict, was_import
from tests.mutation.mutants import Mutant, mutants
from tests.mutation.report import Fate, write
from tests.mutation.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
TRIES = 3
"""A failure that does not come twice proves nothing; after so many of them the mutant counts as survived."""


def main() -> int:
    wanted = _arguments()
    files = wanted.files or [file for file, target in TARGETS.items() if wanted.all or target.complete]
    with Attempts(ROOT, Path(tempfile.mkdtemp(prefix="mutants-"))) as attempts:
        found = {file: mutants(attempts.read(file)) for file in files}
        reasons = argued(found)
        if wanted.list:
            for file, each in found.items():
                for mutant in each:
                    print(f"{file}:{mutant.line} [{mutant.kind}] {mutant.name}")
            return 0
        fates = _all(attempts, found, reasons, wanted)
    survived = [fate for fate in fates if fate.how == "survived"]
    for fate in survived:
        print(f"survived: {fate.file}:{fate.line} [{fate.kind}] {fate.name}")
    print(f"{len(fates)} mutants, {len(survived)} survived; report: {wanted.report}/mutants.md")
    return any(TARGETS[fate.file].complete for fate in survived)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("files", nargs="*", choices=[*TARGETS, []], help="files of targets.py")
    parser.add_argument("--all", action="store_true", help="every file of targets.py")
    parser.add_argument("--list", action="store_true", help="only say which mutants there are")
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutants whose name holds this")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run has found killed")
    parser.add_argument("--argued", action="store_true", help="also run those that are argued: none may be killed")
    parser.add_argument("--report", type=Path, default=ROOT / "build", metavar="FOLDER")
    return parser.parse_args()


def _all(
    attempts: Attempts,
    found: Mapping[str, list[Mutant]],
    reasons: Mapping[tuple[str, str], str],
    wanted: argparse.Namespace,
) -> list[Fate]:
    began = time.monotonic()
    ledger = _Ledger(ROOT / "build" / "mutants.jsonl", wanted.resume)
    fates: list[Fate] = []
    groups: dict[tuple[str, ...], list[str]] = {}
    for file in found:
        groups.setdefault(TARGETS[file].tests, []).append(file)
    for tests, files in groups.items():
        chosen = {file: [m for m in found[file] if wanted.only in m.name] for file in files}
        for file in files:
            fates += [ledger.fates[key] for m in chosen[file] if (key := _key(file, m)) in ledger.fates]
        left = {file: [m for m in chosen[file] if _key(file, m) not in ledger.fates] for file in files}
        if not wanted.argued:
            fates += [_argued(file, m, reasons) for file in files for m in left[file] if (file, m.name) in reasons]
            left = {file: [m for m in left[file] if (file, m.name) not in reasons] for file in files}
        total = sum(map(len, left.values()))
        if not total:
            continue
        print(f"{total} mutants of {', '.join(files)}; first all their tests with nothing wrong …", flush=True)
        reach = attempts.reach(files, tests)
        print(f"{len(reach.seconds)} tests in {sum(reach.seconds.values()):.0f} s", flush=True)
        kills: Counter[tuple[str, str]] = Counter()
        for n, (file, mutant) in enumerate(((f, m) for f in files for m in left[f]), 1):
            fate = _one(attempts, reach, file, mutant, kills)
            if (file, mutant.name) in reasons:
                fate = _checked(fate, reasons[file, mutant.name])
            fates.append(fate)
            ledger.add(_key(file, mutant), fate)
            progress = f"{n}/{total} {fate.seconds:5.1f} s {fate.how:8}"
            print(f"{progress} {file}:{mutant.line} {mutant.name[:110]}  [{fate.by[-60:]}]", flush=True)
        _prove_health(attempts, reach, {fate.by for fate in fates if fate.how == "killed" and fate.file in files})
    order = {file: n for n, file in enumerate(found)}
    fates.sort(key=lambda fate: (order[fate.file], fate.line, fate.name))
    about = {
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": _commit(),
        "python": sys.version.split()[0],
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    write(wanted.report, fates, about)
    return fates


def survey(attempts: Attempts, reach: Reach, file: str, planted: Iterable[Mutant]) -> list[Fate]:
    """What becomes of each mutant."""
    kills: Counter[tuple[str, str]] = Counter()
    return [_one(attempts, reach, file, mutant, kills) for mutant in planted]


def _one(attempts: Attempts, reach: Reach, file: str, mutant: Mutant, kills: Counter[tuple[str, str]]) -> Fate:
    """The verdict of the tests that run the mutant's lines; a kill counts if it comes twice."""
    names = _reaching(reach, file, mutant)
    # Those that noticed the neighbours first, then the quickest.
    order = sorted(names, key=lambda name: (name in reach.slow, -kills[mutant.inside, name], reach.seconds[name]))
    tests = {name: reach.seconds[name] for name in order}
    spent, verdict = 0.0, Verdict("", "", 0, 0.0)
    for _ in range(TRIES if tests else 0):
        verdict = attempts.run(tests, file, mutant)
        spent += verdict.seconds
        if not verdict.failed or was_import(verdict) or verdict.failed not in tests:
            break
        again = attempts.run({verdict.failed: tests[verdict.failed]}, file, mutant)
        spent += again.seconds
        if again.failed:
            break
        verdict = Verdict("", f"{verdict.failed} failed only once", verdict.ran, 0.0)
    if verdict.failed:
        kills[mutant.inside, verdict.failed] += 1
    how = "killed" if verdict.failed else "survived"
    return Fate(
        file, mutant.line, mutant.kind, mutant.name, how, verdict.failed, verdict.said, verdict.ran, spent, bool(names)
    )  # fmt: skip


def _reaching(reach: Reach, file: str, mutant: Mutant) -> set[str]:
    """The tests that run the mutant's lines; for what runs at import, all that run anything of the file."""
    lines = reach.lines.get(file, {})
    near = [lines.get(n, []) for n in range(mutant.first_line, mutant.last_line + 1)]
    names = {name for each in near for name in each if name}
    at_import = any("" in each for each in near) and not names
    return {name for each in lines.values() for name in each if name} if at_import else names


def _prove_health(attempts: Attempts, reach: Reach, killers: Iterable[str]) -> None:
    """The tests that killed pass where nothing is wrong; else their kills would mean nothing."""
    tests = {name: reach.seconds[name] for name in sorted(killers) if name in reach.seconds}
    if tests and (verdict := attempts.run(tests)).failed:
        raise SystemExit(f"not to be trusted: {verdict.failed} fails with nothing wrong: {verdict.said}")


def _argued(file: str, mutant: Mutant, reasons: Mapping[tuple[str, str], str]) -> Fate:
    return Fate(file, mutant.line, mutant.kind, mutant.name, "argued", reasons[file, mutant.name])


def _checked(fate: Fate, why: str) -> Fate:
    if fate.how == "killed":
        raise SystemExit(f"argued, and yet killed by {fate.by}: {fate.file}: {fate.name}")
    return msgspec.structs.replace(fate, how="argued", by=why)


def _key(file: str, mutant: Mutant) -> str:
    return hashlib.sha256(file.encode() + b"\0" + mutant.source).hexdigest()


def _commit() -> str:
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"


class _Ledger:
    """What has been found out, so that a run that was broken off can go on."""

    def __init__(self, place: Path, resume: bool) -> None:
        self.fates: dict[str, Fate] = {}
        place.parent.mkdir(parents=True, exist_ok=True)
        if resume and place.exists():
            for line in place.read_text().splitlines():
                entry: dict[str, Any] = json.loads(line)
                fate = msgspec.convert(entry["fate"], Fate)
                if fate.how == "killed":
                    self.fates[entry["key"]] = fate
        self._file = place.open("a" if resume else "w")

    def add(self, key: str, fate: Fate) -> None:
        self._file.write(json.dumps({"key": key, "fate": msgspec.to_builtins(fate)}) + "\n")
        self._file.flush()


if __name__ == "__main__":
    os.nice(10)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
