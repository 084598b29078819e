"""Runs checks: all at the same time, each with a deadline, and none can end the command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pytest_pprank.doctor.result import Check, Result, State, broken
from pytest_pprank.errors import PprankError


def examine(
    checks: Sequence[Check], before: Callable[[Check], None] = lambda _: None
) -> Iterator[tuple[Check, Result]]:
    """Yield the result of each check, in order; `before` is called before each is waited for."""
    started = [_Running(check) for check in checks]
    for running in started:
        before(running.check)
        yield running.check, running.result()


class _Running:
    """A check in a thread of its own. One that hangs is left behind: the thread is a daemon."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self._found: Result | None = None
        self._deadline = time.monotonic() + check.seconds
        self._thread = threading.Thread(target=self._run, name=check.name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self.check.look()
        except BaseException as error:  # also SystemExit: the other checks go on
            self._found = broken(first_line(error))

    def result(self) -> Result:
        """Wait for the check until its deadline, and return what it has found."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        found = self._found or broken(f"no answer within {self.check.seconds:g} s")
        if found.state is State.BROKEN and not found.stops:
            return replace(found, stops=self.check.stops)
        return found


def first_line(error: BaseException) -> str:
    """Return the first line of an exception; its type, too, if it is not one of this plugin."""
    text = next(iter(str(error).splitlines()), "")
    if isinstance(error, PprankError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
