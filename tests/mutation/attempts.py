"""A copy of the tree in which one file at a time is wrong, and a process that runs tests there."""

import ast
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.mutation.mutants import Mutant
from tests.mutation.probe import COLLECTING
from tests.support.servers import MariaDb

_LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".venv*", "var", "build", "node_modules", "__pycache__", ".*_cache", ".hypothesis", "results", "web"
)
_OURS: Final = ("domain", "actors", "storage", "tests/support")
PATIENCE: Final = 6.0
"""How many times its usual duration a test may take before it counts as hanging; the machine may be busy."""
AT_LEAST_S: Final = 12.0


class Reach(NamedTuple):
    """What the tests did when nothing was wrong."""

    seconds: dict[str, float]
    slow: frozenset[str]
    """Tests that need a database server: they come last."""
    lines: dict[str, dict[int, list[str]]]
    """For each file and line the tests that ran it; lines that run at import name none."""


class Verdict(NamedTuple):
    """`failed` is the first test that failed, or empty: the tests noticed nothing."""

    failed: str
    said: str
    ran: int
    seconds: float


class Unhealthy(Exception):
    """Tests fail although nothing is wrong."""


class Attempts:
    """As a context manager: the copy and its processes are gone afterwards."""

    def __init__(self, root: Path, work: Path, at_least_s: float = AT_LEAST_S) -> None:
        """`at_least_s`: what every test may take, however quick it is otherwise."""
        self._at_least_s = at_least_s
        self._tree = work / "tree"
        self._work = work
        shutil.rmtree(self._tree, ignore_errors=True)
        shutil.copytree(root, self._tree, ignore=_LEFT_OUT, symlinks=True)
        self._server: MariaDb | None = None
        self._done = 0
        self._modules: list[str] = []
        self._nursery: subprocess.Popen[str] | None = None
        self._mutated = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_nursery()
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def read(self, file: str) -> bytes:
        return (self._tree / file).read_bytes()

    def reach(self, files: Iterable[str], tests: Iterable[str]) -> Reach:
        """Run all tests with nothing wrong, and see which lines of the files each of them runs.

        Raises:
            Unhealthy: one of them failed.
        """
        self._start_nursery("")
        places = sorted({str(p.relative_to(self._tree)) for each in tests for p in self._tree.glob(each)})
        answer = self._ask({"tests": None, "files": places, "covered": list(files)}, 1_800.0)
        if answer["failed"]:
            raise Unhealthy(f"{answer['failed']}: {answer['said']} (see {self._work}/attempt/log.txt)")
        self._modules = answer["modules"]
        lines = {file: {int(n): names for n, names in found.items()} for file, found in answer["lines"].items()}
        return Reach(answer["seconds_of"], frozenset(answer["slow"]), lines)

    def run(self, tests: Mapping[str, float], file: str = "", mutant: Mutant | None = None) -> Verdict:
        """Run the tests ({name: usual seconds}) in their order up to the first failure, with the mutant in place."""
        if file != self._mutated:
            self._start_nursery(file)
        place = self._tree / file
        right = place.read_bytes() if mutant else b""
        patient = {name: max(self._at_least_s, PATIENCE * seconds) for name, seconds in tests.items()}
        limit_s = 60.0 + 3.0 * sum(tests.values())
        try:
            if mutant:
                _write(place, mutant.source)
            answer = self._ask({"tests": patient, "files": list(dict.fromkeys(_file(n) for n in tests))}, limit_s)
        finally:
            if mutant:
                _write(place, right)
        return Verdict(answer["failed"], answer["said"], answer["ran"], answer["seconds"])

    def _start_nursery(self, file: str) -> None:
        """A process that has imported all of ours that does not rest on the file, whatever that turns into."""
        self._end_nursery()
        self._mutated = file
        ours = [name for name in untouched(self._tree, file) if name in self._modules] if file else []
        self._nursery = subprocess.Popen(
            [sys.executable, str(self._tree / "tests/mutation/nursery.py"), str(self._tree), *ours],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )

    def _end_nursery(self) -> None:
        if self._nursery is None:
            return
        self._nursery.kill()
        self._nursery.wait()
        for pipe in (self._nursery.stdin, self._nursery.stdout):
            if pipe is not None:
                pipe.close()
        self._nursery = None

    def _ask(self, order: dict[str, Any], limit_s: float) -> dict[str, Any]:
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._done += 1
        order |= {"folder": str(self._work / "attempt"), "limit_s": limit_s, "mariadb": self._mariadb(order)}
        order["first_failure"] = True
        self._nursery.stdin.write(json.dumps(order) + "\n")
        self._nursery.stdin.flush()
        line = self._nursery.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that runs the tests has ended with {self._nursery.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _mariadb(self, order: dict[str, Any]) -> str | None:
        """A fresh database for one attempt, where one of its tests might ask for it."""
        if not any("contract" in file for file in order["files"]):
            return None
        if order["tests"] is not None and not any("mariadb" in name for name in order["tests"]):
            return None
        if self._server is None:
            self._server = MariaDb("--innodb-lock-wait-timeout=50").start()
        if self._done > 1:
            self._server.execute(f"DROP DATABASE IF EXISTS `mutant_{self._done - 1}`")
        return self._server.url(f"mutant_{self._done}")


def untouched(tree: Path, file: str) -> list[str]:
    """Our modules that do not import the file, not even by way of others."""
    imports = {_module(place, tree): _imported(place) for folder in _OURS for place in (tree / folder).rglob("*.py")}
    touched = {_module(tree / file, tree)}
    while True:
        wider = touched | {name for name, imported in imports.items() if imported & touched}
        if wider == touched:
            return sorted(imports.keys() - touched)
        touched = wider


def _module(place: Path, tree: Path) -> str:
    return ".".join(place.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")


def _imported(place: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(place.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def was_import(verdict: Verdict) -> bool:
    """Whether the file could not even be imported."""
    return verdict.failed == COLLECTING


def _file(test: str) -> str:
    return test.partition("::")[0]


def _write(place: Path, source: bytes) -> None:
    for compiled in (place.parent / "__pycache__").glob(f"{place.stem}.*.pyc"):
        compiled.unlink()
    # A new inode and time, so that nothing takes the file for the former one.
    draft = place.with_suffix(f".{secrets.token_hex(4)}")
    draft.write_bytes(source)
    draft.replace(place)
