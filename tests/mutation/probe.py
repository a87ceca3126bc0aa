"""A pytest plugin: runs chosen tests in a given order, and writes down which lines each ran, or which failed first."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COLLECTING = "importing the tests"


class Probe:
    """One run. `order`: `tests` ({name: seconds it may take}, None: all), `mutated` and `covered` files, `mariadb`."""

    def __init__(self, order: dict[str, Any], folder: Path) -> None:
        self._folder = folder
        self._tests: dict[str, float] | None = order["tests"]
        self._mariadb: str | None = order.get("mariadb")
        self._failed, self._said, self._ran = "", "", 0
        self._seconds: dict[str, float] = {}
        self._slow: list[str] = []
        self._coverage: Any = None
        if order.get("covered"):
            import coverage

            self._coverage = coverage.Coverage(
                data_file=None, include=[str(Path(name).resolve()) for name in order["covered"]],
                concurrency=["thread", "greenlet"], config_file=False,
            )  # fmt: skip
            self._coverage.start()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._slow = [item.nodeid for item in items if _needs_server(item)]
        if self._tests is None:
            return
        places = {name: n for n, name in enumerate(self._tests)}
        chosen = sorted((item for item in items if item.nodeid in places), key=lambda item: places[item.nodeid])
        if len(chosen) < len(places):
            missing = places.keys() - {item.nodeid for item in chosen}
            raise pytest.UsageError(f"tests are gone: {sorted(missing)[:3]}")
        for item in chosen:
            item.add_marker(pytest.mark.timeout(self._tests[item.nodeid]), append=False)
        items[:] = chosen

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self._coverage is not None:
            self._coverage.switch_context(item.nodeid)
        began = time.monotonic()
        result = yield
        self._seconds[item.nodeid] = time.monotonic() - began
        self._ran += 1
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        """One server serves all attempts, each with a fresh database."""
        if fixturedef.argname != "mariadb_url" or self._mariadb is None:
            return None
        from storage.engine import migrate

        asyncio.run(migrate(self._mariadb, "test"))
        fixturedef.cached_result = (self._mariadb, fixturedef.cache_key(request), None)
        return self._mariadb

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._fail(COLLECTING, report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._fail(report.nodeid, report.longreprtext)

    def _fail(self, where: str, text: str) -> None:
        if not self._failed:
            said = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()[-1:]
            self._failed, self._said = where, said[0][:200] if said else ""
            self.end(None)

    def end(self, code: int | None) -> None:
        """Write down what is known; before the end, too, since an attempt may be killed at any time."""
        result = {"failed": self._failed, "said": self._said, "ran": self._ran, "seconds_of": self._seconds}
        if code is not None:
            result["code"] = code
            if not self._failed and code != 0:
                result |= {"failed": COLLECTING, "said": f"pytest ended with {code}"}
        result |= {"slow": self._slow, "modules": list(sys.modules)}
        if self._coverage is not None and code is not None:
            self._coverage.stop()
            data = self._coverage.get_data()
            here = Path.cwd()
            result["lines"] = {
                str(Path(name).relative_to(here)): {
                    str(line): tests for line, tests in data.contexts_by_lineno(name).items()
                }
                for name in data.measured_files()
            }
        with contextlib.suppress(OSError):
            (self._folder / "result.json").write_text(json.dumps(result))


def _needs_server(item: Any) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return any("mariadb" in name for name in (*item.fixturenames, *map(str, params.values())))
