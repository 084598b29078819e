"""pytest runs on a pseudo-terminal, driven like a user does, for tests of debuggers."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pexpect

if TYPE_CHECKING:
    from tests.conftest import Runner

PATIENCE = 60
"""Seconds that a session waits for one text; then it fails, and its run is killed."""
_COLORS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[78]")


class Session:
    """A run of pytest on a terminal of its own."""

    def __init__(
        self, runner: Runner, *args: str, patience: float = PATIENCE, **environment: str
    ) -> None:
        flags = ["-pno:randomly", "-pno:cacheprovider", "--pp-size=2", "--pprank-device=cpu"]
        self.runner = runner
        self.said = ""
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "pytest", *flags, *args],
            cwd=str(runner.folder),
            env=runner.environment(**{"TERM": "xterm", **environment}),
            encoding="utf-8",
            timeout=patience,
            dimensions=(50, 200),
        )

    def until(self, text: str) -> str:
        """Wait for `text` (a regular expression); return what came before it."""
        try:
            self.child.expect(text)
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            raise AssertionError(f"no {text!r} after {plain(self.said)}{self._rest()}") from error
        self.said += self.child.before + self.child.after
        return plain(self.child.before)

    def prompt(self, rank: int, *, of: int = 2) -> str:
        """Wait for the prompt of a rank; return what came before it."""
        return self.until(rf"\(Pdb rank {rank}, stage {rank} of {of}\) ")

    def type(self, line: str) -> None:
        """Type a line, and the key that ends it."""
        self.child.sendline(line)

    def end(self) -> str:
        """Wait until the run has ended; return all that it has said."""
        self.child.expect(pexpect.EOF)
        self.said += self.child.before
        self.child.close()
        return plain(self.said)

    @property
    def status(self) -> int | None:
        """The exit status of the run that has ended."""
        status: int | None = self.child.exitstatus
        return status

    def close(self) -> None:
        """Kill the run, if it has not ended."""
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
        self.child.close()

    def _rest(self) -> str:
        before: object = self.child.before
        return plain(before) if isinstance(before, str) else ""


def plain(text: str) -> str:
    """Return text of a terminal without colors, with plain ends of lines."""
    return _COLORS.sub("", text).replace("\r\n", "\n")


@contextmanager
def session(
    runner: Runner, *args: str, patience: float = PATIENCE, **environment: str
) -> Iterator[Session]:
    """Start a run on a terminal, and kill it if the block leaves it running."""
    own = Session(runner, *args, patience=patience, **environment)
    try:
        yield own
    finally:
        own.close()
