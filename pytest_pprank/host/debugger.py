"""``breakpoint()`` and ``pdb.set_trace()`` on a rank: there is no terminal to talk to."""

from __future__ import annotations

import os
import pdb
import sys
from typing import NoReturn

from pytest_pprank.errors import PprankError
from pytest_pprank.rank.context import current_rank

_VARIABLE = "PYTHONBREAKPOINT"


def refuse_debuggers() -> None:
    """Let a debugger that would read this rank's stdin say that it cannot.

    One that the user has chosen by ``PYTHONBREAKPOINT``, which may listen on a socket, is left.
    """
    if not os.environ.get(_VARIABLE):
        sys.breakpointhook = _refuse
    pdb.set_trace = _refuse  # what pytest has put there stops output capture, and reads stdin


def _refuse(*_: object, **__: object) -> NoReturn:
    __tracebackhide__ = True
    raise PprankError(
        f"breakpoint() on rank {current_rank().rank}: a ranked test runs in a process without a "
        "terminal, where a debugger cannot be talked to; print(), pprank.gather() and "
        f"--pprank-live show values, and {_VARIABLE} may name a debugger that listens on a socket "
        "(hold the deadlines with pprank.deadlines_paused())"
    )
