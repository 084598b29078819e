"""Makes ``breakpoint()`` and ``pdb.set_trace()`` fail on a rank, which has no terminal."""

from __future__ import annotations

import os
import pdb
import sys
from typing import NoReturn

from pytest_pprank.errors import PprankError
from pytest_pprank.rank.context import current_rank

_VARIABLE = "PYTHONBREAKPOINT"


def refuse_debuggers() -> None:
    """Make debuggers that read this rank's stdin raise an error that says why.

    A debugger chosen by ``PYTHONBREAKPOINT``, which may listen on a socket, is not changed.
    """
    if not os.environ.get(_VARIABLE):
        sys.breakpointhook = _refuse
    pdb.set_trace = _refuse  # pytest's replacement suspends output capture and reads stdin


def _refuse(*_: object, **__: object) -> NoReturn:
    __tracebackhide__ = True
    raise PprankError(
        f"breakpoint() on rank {current_rank().rank}: a ranked test runs in a process without a "
        "terminal, where a debugger cannot be talked to; print(), pprank.gather() and "
        f"--pprank-live show values, and {_VARIABLE} may name a debugger that listens on a socket "
        "(hold the deadlines with pprank.deadlines_paused())"
    )
