"""Shows what the start of the ranks waits for, if it takes long.

On a terminal the text is shown after what pytest has written in the line, and is removed when the
first test runs. Elsewhere (a CI log) there is one whole line, before the first test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from pytest_pprank._pytest_compat import ansi_terminal, columns_left

_PATIENCE_SECONDS = 0.5
"""Shorter waits are not shown."""
_SAVE, _BACK, _ERASE = "\x1b7", "\x1b8", "\x1b[K"
_LEAST_ROOM = 20


class Progress:
    """The progress line of one run; does nothing if nobody could see it (xdist worker)."""

    def __init__(self, config: pytest.Config) -> None:
        self._reporter = config.pluginmanager.getplugin("terminalreporter")
        self._verbosity = config.get_verbosity()
        self._file: TextIO | None = ansi_terminal(self._reporter)
        self._began = time.monotonic()
        self._shown = ""

    def announce(self, text: str) -> None:
        """Write a line about what begins, if there is no terminal to show progress on."""
        if self._reporter is not None and self._file is None and self._verbosity >= 0:
            self.say(text)

    def say(self, text: str) -> None:
        """Write a line that stays, unless the run is quiet."""
        if self._reporter is not None and self._verbosity >= 0:
            self.clear()
            self._reporter.ensure_newline()
            self._reporter.write(f"pprank: {text}\n", flush=True)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the seconds from here; remove what was shown at the end of the block."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self.clear()

    def show(self, text: str) -> None:
        """Show what is waited for, and for how many seconds; to be called repeatedly."""
        seconds = time.monotonic() - self._began
        words = f" [pprank: {text}, {seconds:.0f} s]"
        if self._file is None or seconds < _PATIENCE_SECONDS or words == self._shown:
            return
        room = columns_left(self._reporter)
        if room >= _LEAST_ROOM:  # never into the next line: the cursor could not be moved back
            self._shown = words
            self._write(f"{_SAVE}{words[:room]}{_ERASE}{_BACK}")

    def clear(self) -> None:
        """Remove what is shown, before other text is written."""
        if self._shown:
            self._shown = ""
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        assert self._file is not None
        self._file.write(text)
        self._file.flush()
