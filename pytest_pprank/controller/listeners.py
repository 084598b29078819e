"""The listeners to what the ranks print, besides the reports: the terminal and the log folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pprank.controller.live import LiveLines
from pytest_pprank.controller.log_dir import LogDir
from pytest_pprank.controller.output import Listener
from pytest_pprank.controller.progress import Progress
from pytest_pprank.options import Options

_LIVE_CAPTURE = ("no", "tee-sys")


class Listeners:
    """The listeners of one run, according to its options, and `more`.

    Raises UsageError for a bad folder.
    """

    def __init__(
        self, config: pytest.Config, options: Options, progress: Progress, more: Listener | None
    ) -> None:
        terminal = config.pluginmanager.getplugin("terminalreporter")
        live = options.live or config.getoption("capture", "fd") in _LIVE_CAPTURE
        # a process without a terminal (a worker of xdist) shows nothing
        shown = live and terminal is not None
        self._live = LiveLines(terminal, progress.clear) if shown else None
        folder = options.log_dir and Path(config.invocation_params.dir, options.log_dir)
        worker = getattr(config, "workerinput", {}).get("workerid")  # one of xdist's
        self._logs = LogDir(folder, f"{worker}-" if worker else "") if folder else None
        self._clear = progress.clear
        given: tuple[Listener | None, ...] = (self._live, self._logs, more)
        self.all: tuple[Listener, ...] = tuple(one for one in given if one is not None)

    def begin(self, nodeid: str) -> None:
        """Begin a test."""
        if self._logs is not None:
            self._logs.begin(nodeid)

    @property
    def live(self) -> bool:
        """Whether the terminal shows what ranks print."""
        return self._live is not None

    def hold(self, held: bool) -> None:
        """Show unfinished lines, and then nothing while `held`: a rank has the terminal."""
        self._clear()
        if self._live is not None:
            self._live.flush()
            self._live.hold(held)

    def flush(self) -> None:
        """End a test: show unfinished lines."""
        if self._live is not None:
            self._live.flush()

    def close(self) -> None:
        """End the run: close the log files."""
        if self._logs is not None:
            self._logs.close()
