"""SIGTERM, by which a cancelled CI job ends a run: the same as Ctrl-C, so that reports are written.

By default Python ends at once, without junit.xml and without a summary.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

import pytest

_NAME = "pprank-termination"
_SETTLE_S = 2.0
"""Seconds after Ctrl-C in which SIGTERM waits: an exception on its way must not meet another."""


class Termination:
    """Plugin object of one run. It leaves alone a handler that somebody else has set."""

    def __init__(self) -> None:
        alone = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        self._set = alone and threading.current_thread() is threading.main_thread()
        self._watches = self._set and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._interrupted_at = -_SETTLE_S
        self._later: threading.Timer | None = None
        if self._set:
            signal.signal(signal.SIGTERM, lambda *_: self._interrupt())
        if self._watches:
            signal.signal(signal.SIGINT, self._note_ctrl_c)

    def pytest_keyboard_interrupt(self) -> None:
        """Ignore SIGTERM from here on: the run is ending already, and writes its reports.

        CI systems send it seconds after SIGINT, and then SIGKILL.
        """
        self._ignore()

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Put back what was set before."""
        self._ignore()
        if self._set:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._watches:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._set = self._watches = False

    def _ignore(self) -> None:
        if self._later is not None:
            self._later.cancel()
        if self._set:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _note_ctrl_c(self, number: int, frame: FrameType | None) -> None:
        self._interrupted_at = time.monotonic()
        signal.default_int_handler(number, frame)

    def _interrupt(self) -> None:
        left = self._interrupted_at + _SETTLE_S - time.monotonic()
        if left > 0:  # Ctrl-C may have been caught, as at a debugger's prompt: so ask again
            self._later = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
            self._later.daemon = True
            self._later.start()
            return
        self._ignore()
        raise KeyboardInterrupt("SIGTERM")


def register(config: pytest.Config) -> None:
    """Let SIGTERM interrupt this run; a worker of xdist is ended by its main process."""
    if not config.pluginmanager.hasplugin(_NAME) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Termination(), _NAME)
