"""Describes a process that does not answer: its state, and its stacks by py-spy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from pytest_pprank.proc import stat_of

_STATES = {
    "D": "in an uninterruptible wait of the kernel",
    "S": "sleeping, and its signals do not get through",
    "R": "running, and its signals do not get through",
    "T": "stopped (by a signal such as SIGSTOP)",
    "t": "stopped by a debugger",
    "Z": "a zombie",
}
_SECONDS = 10
_GONE = "gone"


def describe_silent(pid: int) -> str:
    """Return why a process wrote no stacks, and the stacks that py-spy finds, if it is installed.

    py-spy reads the memory of the process from outside, so the process may be stopped.
    """
    found, state = _py_spy(), _state(pid)
    if state == _GONE:
        return f"(no answer: it is {state})"
    if found is None:
        return f"(no answer: it is {state}; with py-spy installed its stacks would be here)"
    stacks = _dump(found, pid)
    said = stacks.stdout or stacks.stderr.partition("\n")[0]
    return f"(no answer: it is {state}; by py-spy:)\n{said}".rstrip()


def stacks_by_py_spy(pid: int) -> str:
    """Return the stacks that py-spy finds; empty if it is not installed, or may not look."""
    found = _py_spy()
    return "" if found is None else _dump(found, pid).stdout


def _dump(py_spy: str, pid: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [py_spy, "dump", "--nonblocking", "--pid", str(pid)],
        capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip


def is_stopped(pid: int) -> bool:
    """Return whether a signal such as SIGSTOP has stopped a process; a debugger does not count."""
    return _state(pid) == _STATES["T"]


def is_traced(pid: int) -> bool:
    """Return whether a debugger such as gdb is attached to a process: it is slow on purpose."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return any(
        line.startswith("TracerPid:") and line.split()[1] != "0" for line in status.splitlines()
    )


def _py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _state(pid: int) -> str:
    seen = stat_of(pid)
    return _GONE if seen is None else _STATES.get(seen.state, "in an unknown state")
