"""Whole clusters in virtual time, struck by what their seeds draw: no promise of the runtime is ever broken."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import PLANTED, PROFILES
from tests.simulation.profiles import FAULTS, NAMED
from tests.simulation.run import simulate
from tests.simulation.sweep import Sweep, summary, sweep, told

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("RENOVEASY_CHAOS") == "full"
SEEDS = 10_000 if FULL else 500
JOBS = 2
WITHIN = 200
"""Seeds within which a planted bug has to be found."""


def progress(so_far: Sweep) -> None:
    if FULL and so_far.seeds % 500 < 10:
        print(f"{so_far.seeds} seeds in {so_far.real_s:.0f} s", flush=True)


@pytest.mark.timeout(7_200 if FULL else 600)
def test_no_seed_breaks_a_promise(capsys: pytest.CaptureFixture[str]) -> None:
    found = sweep(range(SEEDS), JOBS, progress=progress)
    with capsys.disabled():
        print(f"\n{summary(found, FAULTS)}")
    assert not found.failed, "\n\n".join(told(report) for report in found.failed)
    assert set(FAULTS) <= found.faults.keys(), "some kind of chaos never struck"
    assert found.counts["acked"] > 20 * SEEDS


@pytest.mark.parametrize("profile", NAMED)
def test_every_named_profile_runs(profile: str) -> None:
    for seed in range(5):
        report = simulate(seed, profile)
        assert report.ok, told(report)
    assert report.counts["acked"] > 5


@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_bug_is_found(planted: str, capsys: pytest.CaptureFixture[str]) -> None:
    profile = PROFILES.get(planted, "swarm")
    found = sweep(range(WITHIN), JOBS, profile, planted, most_failed=1)
    assert found.failed, f"{planted} was not found within {WITHIN} seeds"
    first = found.failed[0]
    with capsys.disabled():
        print(f"\n{planted}: seed {first.seed}, {first.violations[0][:110]}")
    assert simulate(first.seed, profile).ok, "the seed fails without the planted bug, too"


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    def traces(hash_seed: str) -> list[str]:
        code = (
            "import sys; from tests.simulation.run import simulate\nfor n in (3, 14, 15, 92): print(simulate(n).trace)"
        )
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    here = [simulate(seed).trace for seed in (3, 14, 15, 92)]
    assert traces("1") == traces("2") == here
    assert len(set(here)) == 4


def test_a_failed_seed_says_how_to_see_it_again() -> None:
    report = simulate(1, planted="recovery-off-by-one")
    text = told(report)
    assert "python -m tests.simulation 1 --planted recovery-off-by-one" in text
    assert "VIOLATION" in text.splitlines()[-1] or "VIOLATION" in text
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *report.replay.split()[3:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert report.trace in done.stdout


CHANCE = frozenset({"random", "secrets", "uuid", "uuid_utils", "time", "datetime"})
ALLOWED = {
    "gateway/switchboard.py": {"random"},  # the default of an argument
    "gateway/fallbacks.py": {"secrets"},  # the same
    "gateway/client.py": {"random", "secrets", "time"},  # the same; its core has none
    "domain/times.py": {"datetime"},  # formats instants, never asks for one
    "gateway/certificates.py": {"datetime"},  # the instants in certificates; the clock is given
    "domain/tracking.py": {"datetime"},
    "domain/order_commands.py": {"datetime"},
}


def test_the_runtime_has_no_source_of_chance_or_time_of_its_own() -> None:
    found = []
    for folder in ("actors", "gateway", "domain"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            imported = {
                alias.name.partition(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
            }
            found += [f"{name} imports {module}" for module in imported & CHANCE - ALLOWED.get(name, set())]
    assert found == []
