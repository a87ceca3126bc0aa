"""Runs a program that dies with the process that started it, however that one ends.

`python -S tether.py PARENT_PID SIGNAL PROGRAM ARGUMENT…` asks the kernel for SIGNAL at the death of PARENT_PID, then
becomes PROGRAM. The starting *thread* must live as long as its process: the kernel watches the thread (prctl(2)).
Elsewhere than on Linux it only becomes the program.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, signal_number: int, command: list[str]) -> None:
    """Never returns."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - becoming the program is what this is for


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
