"""How the processes that are always busy set their interpreter; in one of its own, as it is for the whole process."""

import json
import subprocess
import sys

from deploy.interpreter import MIDDLE, OLD, SWITCH_S, YOUNG

SCRIPT = """
import gc, json, sys
from deploy.interpreter import calm
calm()
print(json.dumps([gc.get_threshold(), gc.get_freeze_count() > 0, sys.getswitchinterval()]))
"""


def test_what_is_there_is_looked_through_no_more_and_threads_wait_little() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [[YOUNG, MIDDLE, OLD], True, SWITCH_S]
    assert SWITCH_S < 0.005, "Python's own"
