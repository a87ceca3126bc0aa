"""The tally of hostile cases, over all worker processes of a run: printed at its end, whoever ran them.

It is kept here because a run that is given `tests` reads the conftest of a folder below only in its workers.
"""

import os
from typing import Any, Final

import pytest

from tests.security.tally import Tally

_tally = pytest.StashKey[Tally]()
_WORKER_OUTPUT: Final = "hostile_cases"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_tally] = Tally()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its part to the process that prints."""
    handed: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if handed is not None:
        handed[_WORKER_OUTPUT] = session.config.stash[_tally].rows()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """A worker has ended; one that was killed has handed over nothing."""
    node.config.stash[_tally].add(getattr(node, "workeroutput", {}).get(_WORKER_OUTPUT, ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[_tally]
    if tally.of("")[1]:
        form = "all" if os.environ.get("RENOVEASY_CHAOS") == "full" else "sampled"
        terminalreporter.section(f"hostile cases, {form}")
        for line in tally.report():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """What was attacked in this process."""
    return request.config.stash[_tally]
