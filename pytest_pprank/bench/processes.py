"""A child with a deadline, of which nothing stays: not its launcher, not its ranks, not even when
we are killed.
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
"""How long pytest gets after Ctrl-C: it ends its ranks and reports what it has."""
_POLL_S = 0.05
_GONE_S = 10.0

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Inside this context Ctrl-C, SIGTERM (a CI job that is cancelled, `timeout`) and SIGHUP end
    us where we `check`, not in the middle of a file, and not at once with our children left. The
    second one does not wait for that.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._ask) for number in _ENDS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if we are asked to end."""
        if self._asked:
            raise KeyboardInterrupt

    def _ask(self, *_: object) -> None:
        self.check()
        self._asked = True


class Child:
    """A process in a session of its own; `mark` (a variable and its value) finds its descendants,
    wherever they have gone: they inherit the environment.

    It gets SIGKILL when the thread that has made it ends, and so when we do; a pytest's launcher
    then ends its ranks.
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
                # not by preexec_fn, which is not safe where there are threads
                [sys.executable, "-I", "-S", parent.__file__, str(os.getpid()), *command],
                cwd=folder,
                env={**environment, mark[0]: mark[1]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, None if the child still runs after `seconds`."""
        try:
            return self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> int:
        """End the child if it still runs, as Ctrl-C does and then by force, and all that is left
        of it; returns its exit code.
        """
        if self.wait(0) is None:
            self._process.send_signal(signal.SIGINT)
            if self.wait(_ORDERLY_S) is None:
                self._process.kill()
        code = self._process.wait()
        self._sweep()
        return code

    def output(self) -> str:
        """Return what it has printed."""
        return self.output_file.read_text("utf-8", errors="replace")

    def _sweep(self) -> None:
        """SIGKILL what carries the mark. The launcher ends its ranks itself when pytest is gone,
        so it gets a moment for that.
        """
        started = time.monotonic()
        while left := list(self._left()):
            waited = time.monotonic() - started
            if waited > 2 * _GONE_S:
                return  # a process in an uninterruptible wait: nothing ends it
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
            # a zombie's is empty
            return self._mark in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False  # gone meanwhile, or another user's
