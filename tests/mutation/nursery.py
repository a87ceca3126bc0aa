"""Runs tests again and again in forks of a process that has imported already what no mutant can change.

A script of its own, started in a copy of the tree with the names of our modules to import beside the libraries (none
of which may import the mutated one): it reads orders (one JSON object a line) and answers each with one
line. An attempt gets its own session, folder for temporary files, and limits of time and memory; all of it is killed
when it is over.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY_BYTES = 6 << 30
LIBRARIES = (
    "pytest",
    "_pytest.pytester",
    "pytest_asyncio.plugin",
    "pytest_timeout",
    "aiosqlite",
    "alembic.command",
    "asyncmy",
    "coverage",
    "msgspec",
    "phonenumbers",
    "sqlalchemy.dialects.mysql.asyncmy",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlalchemy.ext.asyncio",
    "uuid_utils",
)


def main() -> None:
    tree = Path(sys.argv[1]).resolve()
    os.chdir(tree)
    sys.path[0] = str(tree)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for module in (*LIBRARIES, *sys.argv[2:]):
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(_attempt(json.loads(line))), flush=True)


def _attempt(order: dict[str, Any]) -> dict[str, Any]:
    folder = Path(order["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _in_child(order, folder)
        finally:
            os._exit(70)
    ended = os.pidfd_open(child)
    try:
        in_time = bool(select.select([ended], [], [], order["limit_s"])[0])
    finally:
        os.close(ended)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    answer: dict[str, Any] = {"failed": "", "said": "", "ran": 0}
    with contextlib.suppress(OSError, ValueError):
        answer = json.loads((folder / "result.json").read_text())
    if not in_time:
        answer |= {"failed": answer["failed"] or "the time limit", "said": f"not over after {order['limit_s']:.0f} s"}
    elif not os.WIFEXITED(status) or os.WEXITSTATUS(status) not in (0, 1, 2, 5) or "code" not in answer:
        answer |= {"failed": answer["failed"] or "the process", "said": f"ended with status {status}"}
    return answer | {"seconds": time.monotonic() - began}


def _in_child(order: dict[str, Any], folder: Path) -> None:
    os.setsid()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    pytest = importlib.import_module("pytest")
    probe = importlib.import_module("tests.mutation.probe").Probe(order, folder)
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", f"--basetemp={folder / 'tmp' / 'p'}"]
    if order["first_failure"]:
        options.append("-x")
    code = int(pytest.main([*options, *order["files"]], plugins=[probe]))
    probe.end(code)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
