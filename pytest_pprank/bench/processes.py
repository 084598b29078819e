"""Runs a child process with a deadline and leaves no descendants behind: neither its launcher nor
its ranks, even if this process is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_pprank.launch import parent

_ORDERLY_S = 15.0
"""Time that pytest gets after Ctrl-C to end its ranks and report its results, in seconds."""
_POLL_S = 0.05
_GONE_S = 10.0

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Defers Ctrl-C, SIGTERM (a cancelled CI job, `timeout`) and SIGHUP to the next `check`.

    So they interrupt neither the writing of a file nor leave children behind. A second signal takes
    effect at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {number: signal.signal(number, self._ask) for number in _ENDS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has asked to stop."""
        if self._asked:
            raise KeyboardInterrupt

    def _ask(self, *_: object) -> None:
        self.check()
        self._asked = True


class Child:
    """A process in a session of its own.

    `mark` (an environment variable and its value) identifies all its descendants, since they
    inherit the environment. The child gets SIGKILL when the thread that created it ends, and so
    also when this process ends; a pytest's launcher then ends its ranks.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        mark: tuple[str, str],
    ) -> None:
        self._mark = f"{mark[0]}={mark[1]}".encode()
        self.output_file = folder / "output.txt"
        with self.output_file.open("wb") as output:
            self._process = subprocess.Popen(
                # not by preexec_fn, which is unsafe in a process with threads
                [sys.executable, "-I", "-S", parent.__file__, str(os.getpid()), *command],
                cwd=folder,
                env={**environment, mark[0]: mark[1]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """Return the exit code; None if the child still runs after `seconds`."""
        try:
            return self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> int:
        """End the child and its descendants; return the child's exit code.

        A running child gets SIGINT first, then SIGKILL.
        """
        if self.wait(0) is None:
            self._process.send_signal(signal.SIGINT)
            if self.wait(_ORDERLY_S) is None:
                self._process.kill()
        code = self._process.wait()
        self._sweep()
        return code

    def output(self) -> str:
        """Return what the child has printed."""
        return self.output_file.read_text("utf-8", errors="replace")

    def _sweep(self) -> None:
        """SIGKILL processes with the mark, after some time for a clean exit.

        The launcher ends its ranks itself when pytest has exited.
        """
        started = time.monotonic()
        while left := list(self._left()):
            waited = time.monotonic() - started
            if waited > 2 * _GONE_S:
                return  # a process in an uninterruptible wait cannot be killed
            if waited > _GONE_S:
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)

    def _left(self) -> list[int]:
        return [int(entry.name) for entry in Path("/proc").iterdir() if self._is_marked(entry)]

    def _is_marked(self, entry: Path) -> bool:
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            return False
        try:
            # the environment of a zombie is empty
            return self._mark in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False  # gone by now, or of another user
