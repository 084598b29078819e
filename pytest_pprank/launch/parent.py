"""End when the parent is gone, however it ended: asked of the kernel (prctl(2), PR_SET_PDEATHSIG).

As a script it becomes another program, which keeps that: ``parent.py PID PROGRAM [ARGUMENT ...]``,
where PID is the parent's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Get SIGKILL when the parent's thread that started this process ends, also by SIGKILL."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Become the program, unless the parent is gone already."""
    parent, *command = sys.argv[1:]
    die_with_parent()
    if os.getppid() == int(parent):  # it may have ended before the kernel was asked
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
