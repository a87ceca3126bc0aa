"""The sum that is printed is that of distinct cases over all processes of the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.tally import Tally

ROOT = Path(__file__).parents[2]
INNER = """
import pytest

@pytest.mark.parametrize("number", range(8))
def test_an_attack(tally, number):
    tally.tried("SEC-1", "the same one", "everywhere")
    tally.tried("SEC-2", f"number {number}", "here", 3)
"""


def test_a_case_that_two_processes_tried_is_one() -> None:
    one, two = Tally(), Tally()
    one.tried("SEC-1", "a", "x", 2)
    two.tried("SEC-1", "a", "x")
    two.tried("SEC-1", "a", "y")
    one.add(two.rows())
    assert one.of("SEC-1") == (2, 4)


@pytest.mark.timeout(310)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_cases_of_all_workers_are_printed_once(tmp_path: Path, workers: int) -> None:
    """The suite itself is given `tests`, so that no conftest of a folder below is read by the process that prints."""
    (tmp_path / "tests" / "inner").mkdir(parents=True)
    (tmp_path / "tests" / "inner" / "test_inner.py").write_text(INNER)
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    (tmp_path / "tests" / "conftest.py").write_text(conftest.replace("from tests.security.tally", "from tally"))
    (tmp_path / "tally.py").write_text((ROOT / "tests" / "security" / "tally.py").read_text())
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "RENOVEASY_CHAOS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "xdist",
        "-n",
        str(workers),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "SEC-1 1 cases 8 attempts the same one" in said
    assert "SEC-2 8 cases 24 attempts" in said
    assert "all 9 cases 32 attempts" in said
