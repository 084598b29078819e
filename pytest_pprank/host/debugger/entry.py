"""Where a test enters pdb on a rank: `breakpoint()`, `pdb.set_trace()`, --trace and --pdb."""

from __future__ import annotations

import bdb
import os
import pdb
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, cast

import pytest

from pytest_pprank.errors import PeerError, PprankError
from pytest_pprank.host.debugger.attach import Attach
from pytest_pprank.host.debugger.iterate import Iteration
from pytest_pprank.host.debugger.prompt import (
    POST_MORTEM,
    RUNCALL,
    SET_TRACE,
    RankPdb,
    class_of,
    line,
    place,
    place_of_error,
    wait_for_the_end,
)
from pytest_pprank.host.debugger.terminal import RankTerminal
from pytest_pprank.protocol.bootstrap import Debugging

if TYPE_CHECKING:
    from pytest_pprank.host.link import Link
    from pytest_pprank.protocol.messages import Turn
    from pytest_pprank.rank.handle import Pprank

_VARIABLE = "PYTHONBREAKPOINT"
_OUTSIDE = "it was called outside a test, where nobody can be asked"


class RankDebugger:
    """The debugger of this rank; every `Debugging` says whether and when it stops."""

    def __init__(
        self, config: pytest.Config, debugging: Debugging, pprank: Pprank, link: Link
    ) -> None:
        self._config = config
        self._debugging = debugging
        self._rank = pprank.rank
        self._iteration = Iteration()
        self._terminal = RankTerminal(pprank.workdir, link.send, link.debugger, self._iteration)
        link.at_loss = self._terminal.restore_attributes
        self._class: type[RankPdb] = RankPdb
        self._attach = Attach(pprank.workdir, pprank.rank)
        self._link = link
        self.endpoint = ""
        """Where this rank waits for a debugger to attach; empty if it does not."""
        self._item: pytest.Item | None = None

    def install(self) -> None:
        """Make `breakpoint()` and `set_trace()` stop at the user's terminal.

        A debugger chosen by ``PYTHONBREAKPOINT``, which may listen on a socket, is not changed.
        Raises pytest.UsageError for a class of --pdbcls that cannot be used.
        """
        given: tuple[str, str] | None = self._config.getoption("usepdb_cls", None)
        self._class = class_of(
            given, terminal=self._terminal, iteration=self._iteration, leave=self._left
        )
        if not os.environ.get(_VARIABLE):
            sys.breakpointhook = self._set_trace
        # pytest's replacement of the first reads this rank's stdin
        pdb.set_trace = pytest.set_trace = self._set_trace
        if self._debugging.attach and self._debugging.only in (None, self._rank):
            self.endpoint = self._attach.listen()

    @contextmanager
    def in_test(self, item: pytest.Item) -> Iterator[None]:
        """Allow the debugger inside the block; after it, the streams are this rank's again."""
        self._item = item
        if self._debugging.attach:
            self._await_clients()
        try:
            yield
        finally:
            self._item = None
            self._iteration.values = {}
            self._terminal.abandon()

    def _await_clients(self) -> None:
        """Wait until a client is attached to all ranks, or to the one that was chosen."""
        self._attach.wait()
        with suppress(PeerError):  # a peer has died: the controller knows
            self._link.exchange("debuggers attached", None, "the start of the test")

    def _set_trace(self, *_: object, header: str | None = None, **_more: object) -> None:
        __tracebackhide__ = True
        if not self._stops_here() or self._debugging.attach:
            return
        self._check(f"breakpoint() on rank {self._rank}")
        caller = sys._getframe(1)
        self._enter(SET_TRACE, place(caller), caller, header).set_trace(caller)

    @contextmanager
    def traced(self, item: pytest.Item) -> Iterator[None]:
        """Under --trace, let the test function stop at its first line."""
        wanted = self._debugging.trace and self._stops_here() and not self._debugging.refusal
        if not wanted or not isinstance(item, pytest.Function):
            yield
            return
        test = item.obj
        file, number, function = item.location
        where = f"{os.path.basename(file)}:{(number or 0) + 1} in {function}"
        debugger = self._enter(RUNCALL, where, sys._getframe())

        @wraps(test)
        def traced(*args: object, **kwargs: object) -> None:
            debugger.runcall(partial(test, *args, **kwargs))

        item.obj = traced
        try:
            yield
        finally:
            item.obj = test
            self._terminal.abandon()

    def examine(self, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Under --pdb, stop at a failure while its frames are alive."""
        error = None if call.excinfo is None else call.excinfo.value
        wanted = self._debugging.post_mortem and self._stops_here() and not self._debugging.refusal
        if not wanted or error is None or not _is_failure(error, report):
            return
        turn = self._terminal.stop(place_of_error(error), POST_MORTEM, "has failed")
        try:
            if turn is not None:
                print(line("traceback"), report.longreprtext, sep="\n")
                debugger = self._made(POST_MORTEM, turn)
                debugger.reset()
                debugger.interaction(None, _subject(error))
        finally:
            self._terminal.abandon()

    def _enter(self, how: str, where: str, frame: FrameType, header: str | None = None) -> RankPdb:
        self._iteration.values = getattr(self._item, "funcargs", {})
        turn = self._terminal.stop(where, how, self._iteration.why_not(frame))
        if turn is None:
            wait_for_the_end()
        return self._made(how, turn, header)

    def _made(self, how: str, turn: Turn | None, header: str | None = None) -> RankPdb:
        debugger = self._class()
        debugger.prepare(how, turn, header)
        self._config.hook.pytest_enter_pdb(config=self._config, pdb=debugger)
        return debugger

    def _left(self, debugger: RankPdb) -> None:
        self._config.hook.pytest_leave_pdb(config=self._config, pdb=debugger)

    def _stops_here(self) -> bool:
        return self._debugging.only in (None, self._rank) and not self._iteration.running

    def _check(self, what: str) -> None:
        __tracebackhide__ = True
        if why := self._debugging.refusal or ("" if self._item else _OUTSIDE):
            raise PprankError(
                f"{what}: {why}; print(), pprank.gather() and --pprank-live show values, and "
                f"{_VARIABLE} may name a debugger that listens on a socket (hold the deadlines "
                "with pprank.deadlines_paused())"
            )


def _is_failure(error: BaseException, report: pytest.TestReport) -> bool:
    """Return whether a failure is one of this rank's own, and is not expected."""
    theirs = (PeerError, bdb.BdbQuit, pytest.skip.Exception)
    return report.failed and not hasattr(report, "wasxfail") and not isinstance(error, theirs)


def _subject(error: BaseException) -> TracebackType | None:
    """Return what pdb is to look at: from Python 3.13 on it knows chains of exceptions."""
    new = sys.version_info >= (3, 13)
    return cast("TracebackType", error) if new else error.__traceback__
