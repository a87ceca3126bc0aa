"""A host that hangs on another node of the cluster is ended there."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_stopped_process_on_another_node_is_ended_by_a_task_that_is_pinned_there() -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RENOVEASY_"))}
    alone = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [sys.executable, "-m", "tests.cluster.two_nodes"]
    # Ray's sockets live there, and the path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as folder:
        environment = inherited | alone | {"RAY_TMPDIR": folder}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "elsewhere": True,
        "late": False,
        "unknown node": False,
        "another start": False,
        "stopped": True,
        "again": False,
        "started anew": True,
    }
