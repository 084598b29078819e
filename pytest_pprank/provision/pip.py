"""Runs pip of the current interpreter, and keeps its output in case it fails."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TAIL = 15
_BEAT = 30.0


@dataclass(frozen=True)
class Result:
    """The result of a child process; `output`: its stdout and stderr together."""

    code: int
    output: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0

    def tail(self) -> str:
        """Return the last lines of the output, without noise."""
        lines = [line for line in self.output.splitlines() if line.strip() and not _noise(line)]
        return "\n".join(lines[-_TAIL:])


def run(arguments: Sequence[str], beat: Callable[[float], None] | None = None) -> Result:
    """Run ``python -m pip`` with `arguments`."""
    always = ["-q", "--no-input", "--disable-pip-version-check"]
    return run_python(["-m", "pip", *always, *arguments], beat)


def compile_all(beat: Callable[[float], None] | None = None) -> Result:
    """Compile the bytecode of the environment's packages, on all cores.

    pip's own compilation uses one core and half of the time of an installation, so `install` is
    called with --no-compile. A file that does not compile (such as a template) is not an error.
    """
    return run_python(["-m", "compileall", "-q", "-j", "0", sysconfig.get_path("purelib")], beat)


def run_python(arguments: Sequence[str], beat: Callable[[float], None] | None = None) -> Result:
    """Run this interpreter with `arguments`; `beat` is called with the seconds every 30 s."""
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        while True:
            try:
                output, _ = child.communicate(timeout=_BEAT)
                break
            except subprocess.TimeoutExpired:
                if beat is not None:
                    beat(time.monotonic() - started)
        return Result(child.returncode, output, time.monotonic() - started)


def _noise(line: str) -> bool:
    # pip prints this once per package and configured folder that lacks it.
    return line.startswith("WARNING: Location ")
