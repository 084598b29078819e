"""Ends processes that a rank's children leave behind, even those outside the rank's process group.

The kernel reparents an orphan to its nearest ancestor that has asked for it (prctl(2),
PR_SET_CHILD_SUBREAPER). The launcher has asked, so everything that ranks have started ends up below
it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

from pytest_pprank.proc import children_of

_PR_SET_CHILD_SUBREAPER = 36
_SECONDS = 5.0
_AGAIN_SECONDS = 0.01


def adopt_orphans() -> None:
    """Make this process the parent of its orphaned descendants, if the system supports that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_orphans(keep: Collection[int]) -> None:
    """SIGKILL and reap this process's children, except `keep`, and orphans reparented to it."""
    deadline = time.monotonic() + _SECONDS
    while (orphans := children_of(os.getpid()) - set(keep)) and time.monotonic() < deadline:
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_AGAIN_SECONDS)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
