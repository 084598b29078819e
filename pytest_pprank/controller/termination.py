"""SIGTERM, by which a cancelled CI job ends a run: the same as Ctrl-C, so that reports are written.

By default Python ends at once, without junit.xml and without a summary.
"""

from __future__ import annotations

import signal
import threading

import pytest

_NAME = "pprank-termination"


class Termination:
    """Plugin object of one run. It leaves alone a handler that somebody else has set."""

    def __init__(self) -> None:
        alone = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        self._set = alone and threading.current_thread() is threading.main_thread()
        if self._set:
            signal.signal(signal.SIGTERM, lambda *_: self._interrupt())

    def pytest_keyboard_interrupt(self) -> None:
        """Ignore SIGTERM from here on: the run is ending already, and writes its reports.

        CI systems send it seconds after SIGINT, and then SIGKILL.
        """
        self._ignore()

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Put back what was set before."""
        if self._set:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._set = False

    def _ignore(self) -> None:
        if self._set:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _interrupt(self) -> None:
        self._ignore()
        raise KeyboardInterrupt("SIGTERM")


def register(config: pytest.Config) -> None:
    """Let SIGTERM interrupt this run; a worker of xdist is ended by its main process."""
    if not config.pluginmanager.hasplugin(_NAME) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Termination(), _NAME)
