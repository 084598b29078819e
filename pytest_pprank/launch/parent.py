"""Ends a process when its parent ends, by asking the kernel (prctl(2), PR_SET_PDEATHSIG).

As a script it executes another program with this setting: ``parent.py PID PROGRAM [ARGUMENT ...]``,
where PID is the parent's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel send SIGKILL when the parent's thread that started this process ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Execute the program, unless the parent has ended already."""
    parent, *command = sys.argv[1:]
    die_with_parent()
    if os.getppid() == int(parent):  # it may have ended before the kernel was asked
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
