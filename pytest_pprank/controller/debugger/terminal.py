"""Lends the terminal of this run to a rank that has stopped in a debugger.

The rank gets the descriptors themselves, by a socket in the group's folder, so that line editing,
colors and full-screen debuggers work as in pytest without ranks. It has another session than the
terminal: it may read from it, but Ctrl-C reaches this process only, which passes it on.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from pytest_pprank._pytest_compat import own_descriptors
from pytest_pprank.proc import stat_of
from pytest_pprank.protocol.terminal import Attributes, terminal_socket

_HANDOVER_SECONDS = 30.0
_POLL_SECONDS = 0.1
_Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class Terminal:
    """The terminal of this run. `refusal`: why no rank can be debugged on it; empty if one can."""

    def __init__(self, config: pytest.Config) -> None:
        self._reporter = config.pluginmanager.getplugin("terminalreporter")
        self._input, self._output = own_descriptors(config)
        self.refusal = _refusal(config, self._input)
        self._attributes: Attributes | None = None
        self._handlers: dict[signal.Signals, _Handler] = {}

    @property
    def lent(self) -> bool:
        """Whether a rank has it."""
        return self._attributes is not None

    def lend(self, workdir: Path, pid: int, turn: Callable[[], None], *, main: bool) -> None:
        """Pass the terminal to process `pid`, which fetches it when it is told its `turn`.

        `main`: whether Ctrl-C is for that process, and not for this run.
        """
        self._attributes = termios.tcgetattr(self._input)
        self._handle(signal.SIGTSTP, signal.SIG_IGN)  # a shell would read beside the rank
        if main:
            self._handle(signal.SIGINT, lambda *_: _interrupt(pid))
        path = terminal_socket(workdir)
        with suppress(FileNotFoundError):
            path.unlink()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(_POLL_SECONDS)
            turn()
            self._pass_on(listener, pid)

    def _pass_on(self, listener: socket.socket, pid: int) -> None:
        deadline = time.monotonic() + _HANDOVER_SECONDS
        while time.monotonic() < deadline and _lives(pid):
            with suppress(TimeoutError):
                peer, _ = listener.accept()
                with peer, suppress(OSError):
                    socket.send_fds(peer, [b"t"], [self._input, self._output])
                return

    def take_back(self) -> None:
        """Take the terminal back, and put back what the rank has changed."""
        if self._attributes is None:
            return
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._attributes)
        self._attributes = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def show(self, title: str, text: str) -> None:
        """Print text of a rank before its prompt."""
        if self._reporter is not None:
            self._reporter.write_sep(">", title)
            self.say(text.rstrip("\n"))

    def say(self, text: str) -> None:
        """Print lines of this run."""
        if self._reporter is not None:
            self._reporter.ensure_newline()
            self._reporter.write(f"{text}\n", flush=True)  # the reader may have to act on it

    def begin_line(self) -> None:
        """Begin a new line before a rank writes."""
        if self._reporter is not None:
            self._reporter.ensure_newline()
            self._reporter.flush()
        sys.stdout.flush()

    def close(self) -> None:
        """Take the terminal back and close the descriptors."""
        self.take_back()
        for descriptor in (self._input, self._output):
            os.close(descriptor)

    def _handle(self, number: signal.Signals, handler: _Handler) -> None:
        with suppress(ValueError):  # pytest runs in a side thread, which gets no signals
            self._handlers[number] = signal.signal(number, handler)


def _refusal(config: pytest.Config, descriptor: int) -> str:
    if hasattr(config, "workerinput"):
        return "it runs under pytest-xdist, whose workers have no terminal (-n0 runs it without)"
    if not os.isatty(descriptor):
        return "standard input is not a terminal"
    return ""


def _interrupt(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)


def _lives(pid: int) -> bool:
    seen = stat_of(pid)
    return seen is not None and seen.state != "Z"
