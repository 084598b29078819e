"""Records which reverted functions a run calls: a revert that no test calls proves nothing.

If `VARIABLE` names a file, `apply` makes each edited function record its calls there: one JSON line
per function, test and phase (not per call). It is a file and not a message, so that the record
survives a rank that hangs or dies afterwards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PPRANK_REVERTS_REACHED"
"""The environment variable with the path of the file; if unset, nothing is recorded."""

_seen: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Reached:
    """A call of `target` in a test: pytest's id of it, and the phase (``setup``, ``call``, ...)."""

    target: str
    test: str
    phase: str


def wanted() -> bool:
    """Return whether edited functions should record their calls."""
    return bool(os.environ.get(VARIABLE))


def statement(target: str) -> str:
    """Return the statement that records a call of `target`, to be inserted into its code."""
    return f"__import__({__name__!r}, fromlist=['note']).note({target!r})"


def note(target: str) -> None:
    """Record that `target` is being called, in the current test of this rank."""
    current = os.environ.get("PYTEST_CURRENT_TEST", "")
    if (target, current) in _seen:
        return
    _seen.add((target, current))
    line = json.dumps({"target": target, "current": current}) + "\n"
    # one write of a short line to a file opened for appending: lines of ranks do not mix
    with open(os.environ[VARIABLE], "ab", buffering=0) as file:
        file.write(line.encode())


def read(file: Path) -> tuple[Reached, ...]:
    """Return the records of all ranks in `file`, without duplicates, in order.

    Empty if the file does not exist.
    """
    if not file.is_file():
        return ()
    return tuple(dict.fromkeys(_parse(file.read_text("utf-8").splitlines())))


def _parse(lines: Iterable[str]) -> Iterable[Reached]:
    for line in lines:
        noted = json.loads(line)
        # pytest writes "file.py::test[param] (phase)"
        test, _, phase = noted["current"].rpartition(" ")
        yield Reached(noted["target"], test, phase.strip("()"))
