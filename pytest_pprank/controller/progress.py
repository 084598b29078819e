"""What the start of the ranks waits for, shown while it takes its time.

On a terminal the words stand behind what pytest has written of the line, and are gone when the
first test runs. Elsewhere (a log of CI) there is one whole line, before the first test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from pytest_pprank._pytest_compat import ansi_terminal, columns_left

_PATIENCE_SECONDS = 0.5
"""What is quicker than that needs no explanation."""
_SAVE, _BACK, _ERASE = "\x1b7", "\x1b8", "\x1b[K"
_LEAST_ROOM = 20


class Progress:
    """The line of one run; does nothing where nobody could see it (a worker of pytest-xdist)."""

    def __init__(self, config: pytest.Config) -> None:
        self._reporter = config.pluginmanager.getplugin("terminalreporter")
        self._verbosity = config.get_verbosity()
        self._file: TextIO | None = ansi_terminal(self._reporter)
        self._began = time.monotonic()
        self._shown = ""

    def announce(self, text: str) -> None:
        """Say in a line of its own what is begun, where no other words can come and go."""
        if self._reporter is not None and self._file is None and self._verbosity >= 0:
            self.say(text)

    def say(self, text: str) -> None:
        """Write a line that stays, unless the run is to be quiet."""
        if self._reporter is not None and self._verbosity >= 0:
            self.clear()
            self._reporter.ensure_newline()
            self._reporter.write(f"pprank: {text}\n", flush=True)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the seconds from here; what was shown is gone at the end."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self.clear()

    def show(self, text: str) -> None:
        """Show what is waited for, and for how many seconds; to be called again and again."""
        seconds = time.monotonic() - self._began
        words = f" [pprank: {text}, {seconds:.0f} s]"
        if self._file is None or seconds < _PATIENCE_SECONDS or words == self._shown:
            return
        room = columns_left(self._reporter)
        if room >= _LEAST_ROOM:  # never into the next line, from which there is no way back
            self._shown = words
            self._write(f"{_SAVE}{words[:room]}{_ERASE}{_BACK}")

    def clear(self) -> None:
        """Take away what is shown: somebody else is going to write."""
        if self._shown:
            self._shown = ""
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        assert self._file is not None
        self._file.write(text)
        self._file.flush()
