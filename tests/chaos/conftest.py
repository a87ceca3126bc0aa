"""Crashes, pauses and outages on real processes. Two forms: short in `make test`, full with `RENOVEASY_CHAOS=full`.

A test says which line of the catalogue it shows by `@pytest.mark.catalogue("R3", "what is done")`. Everything it measures goes
to `chaos.record`; at the end of the session the rows of all such tests, failed and skipped ones too, become a report.
"""

import asyncio
import os
import random
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from storage.engine import migrate
from tests.chaos import report as reports
from tests.chaos.report import FAILED, FULL, SHORT, SKIPPED, Report, Row
from tests.support.databases import migrated
from tests.support.oracle import Evidence, Fault
from tests.support.parts import Parts
from tests.support.servers import MariaDb, Nats, mariadb_installed

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "chaos"
FULL_FORM = os.environ.get("RENOVEASY_CHAOS") == FULL
MOST_REPEATS = int(os.environ.get("RENOVEASY_CHAOS_REPEATS", "1000000"))
_report = pytest.StashKey[Report]()
_row = pytest.StashKey[Row]()


# --- the report --------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "catalogue(id, what): the line of the reliability catalogue that a test shows")
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    machine = {"cores": psutil.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30)}
    form = FULL if FULL_FORM else SHORT
    config.stash[_report] = reports.begin(form, revision.stdout.strip() or "unknown", machine)


def row_of(item: pytest.Item) -> Row | None:
    """The row of a test that shows a line of the catalogue; None for any other."""
    marker = item.get_closest_marker("catalogue")
    if marker is None:
        return None
    if _row not in item.stash:
        identifier, what = marker.args
        variant = getattr(item, "callspec", None)
        test = item.nodeid.rpartition("/")[2]
        item.stash[_row] = Row(identifier, f"{what} ({variant.id})" if variant else what, test)
    return item.stash[_row]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    row = row_of(item)
    if row is not None:
        rows = item.config.stash[_report].rows
        if row not in rows:
            rows.append(row)
        row.seconds += call.duration
        if outcome.skipped:
            row.verdict, row.why = SKIPPED, str(outcome.longrepr[2] if outcome.longrepr else "")
        elif outcome.failed:
            row.verdict = FAILED
            error = call.excinfo.value if call.excinfo else None
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            row.why = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    return outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.stash.get(_report, None)
    if report is not None and report.rows and not session.config.option.collectonly:
        folder = RESULTS if report.form == FULL else Path(tempfile.gettempdir()) / "renoveasy-chaos"
        data, text = reports.write(report, folder)
        session.config.stash[_written] = (data, text)


_written = pytest.StashKey[tuple[Path, Path]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    paths = config.stash.get(_written, None)
    if paths is not None:
        report = config.stash[_report]
        terminalreporter.section(f"chaos, {report.form} form")
        for row in report.rows:
            terminalreporter.write_line(f"{row.id:<5} {row.verdict:<8} {row.what}: {reports.figures(row.figures)}")
            if row.why:
                terminalreporter.write_line(f"{'':<15}{row.why}")
        terminalreporter.write_line(f"report: {paths[1]} and {paths[0].name}")
        if report.form == FULL and (absent := reports.missing(report)):
            terminalreporter.write_line(f"no test of this run was about {', '.join(absent)}")


# --- what tests ask for ------------------------------------------------------------------------------------------


class Chaos:
    """How much a test is to do, and where it puts what it found."""

    def __init__(self, row: Row, seed: int) -> None:
        self.row = row
        self.full = FULL_FORM
        self.random = random.Random(seed)
        self._told_s = 0.0

    def repeats(self, short: int, full: int) -> int:
        """How often a fault is to be repeated; in the full form at most `RENOVEASY_CHAOS_REPEATS` times."""
        self.row.repeats = min(full, MOST_REPEATS) if self.full else short
        return self.row.repeats

    def seconds(self, short: float, full: float) -> float:
        return full if self.full else short

    def choose(self, short: Any, full: Any) -> Any:
        return full if self.full else short

    def load(self, text: str) -> None:
        """What the platform was asked to do meanwhile, for the report."""
        self.row.load = text

    def record(self, **figures: Any) -> None:
        """Add to what was measured."""
        self.row.figures.update(figures)

    def tell(self, text: str) -> None:
        """Progress of a long run, to be seen with `-s`; at most once in two seconds."""
        if self.full and time.monotonic() - self._told_s > 2.0:
            self._told_s = time.monotonic()
            print(f"{time.strftime('%H:%M:%S')} {self.row.id}: {text}", flush=True)

    def no_faults(self, faults: list[Fault], evidence: Evidence) -> None:
        """Put the promises that were broken into the row, and fail if there are any."""
        counts = dict.fromkeys("LDOPUW", 0)
        for fault in faults:
            counts[fault.promise] += 1
        kept = "".join(promise for promise, count in counts.items() if not count)
        broken = {promise: count for promise, count in counts.items() if count}
        self.record(sent=len(evidence.sent), acked=sum(m.acked for m in evidence.sent.values()), kept=kept)
        if broken:
            self.record(broken=broken)
        some = [[fault for fault in faults if fault.promise == promise][:6] for promise in broken]
        shown = "\n".join(str(fault) for group in some for fault in group)
        assert not faults, f"{len(faults)} broken promises, {broken}:\n{shown}"


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Chaos:
    row = row_of(request.node)
    return Chaos(row or Row("", request.node.name, request.node.nodeid), seed=20_260_101)


def needs_mariadb() -> None:
    if not mariadb_installed():
        pytest.skip("MariaDB is not installed: apt-get install mariadb-server")


@pytest.fixture(params=["sqlite", "mariadb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, of one kind and of the other."""
    if request.param == "mariadb":
        needs_mariadb()
    with migrated(request.param, tmp_path) as url:
        yield url


def in_short_on(kind: str) -> pytest.MarkDecorator:
    """The test's `store` is of this kind alone in the short form, and of both in the full one."""
    return pytest.mark.parametrize("store", ["sqlite", "mariadb"] if FULL_FORM else [kind], indirect=True)


@pytest.fixture
def tmp_store(tmp_path: Path) -> Iterator[str]:
    """The URL of an empty SQLite database, for what is not about the store."""
    with migrated("sqlite", tmp_path) as url:
        yield url


class MariaDatabase(NamedTuple):
    """An empty, migrated database and the server it is on."""

    server: MariaDb
    url: str


@pytest.fixture
def mariadb() -> Iterator[MariaDatabase]:
    needs_mariadb()
    with MariaDb() as server:
        url = server.url("renoveasy")
        asyncio.run(migrate(url, "test"))
        yield MariaDatabase(server, url)


@pytest.fixture
def nats() -> Iterator[Nats]:
    with Nats() as server:
        yield server


class Houses:
    """Makes platforms of parts, all of which are gone when the test is over."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats
        self._stack = AsyncExitStack()

    async def build(self, url: str, **options: Any) -> Parts:
        """A running platform; `options` are those of `Parts`."""
        return await self._stack.enter_async_context(Parts(url, self._nats.url, **options))

    async def enter(self, manager: Any) -> Any:
        """Anything else that is to be closed at the end, such as a `Crowd`."""
        return await self._stack.enter_async_context(manager)

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def houses(nats: Nats) -> AsyncIterator[Houses]:
    made = Houses(nats)
    yield made
    await made.close()
