"""Says where ranks are that run, for the debugger's command ``ranks``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pytest_pprank import frames
from pytest_pprank.controller.stacks import stacks_of

_FRAME = re.compile(r'File "(.+?)", line (\d+) in (.+)')


def describe_running(
    workdir: Path, running: Mapping[int, str], pids: Mapping[int, int], waits: Iterable[str]
) -> dict[int, str]:
    """Return where each rank is that has not stopped, in words.

    `running`: the phase of each, and in which meeting it waits. `waits`: lines that begin with the
    rank that waits, such as ``rank 1 waits in recv(...)``.
    """
    lines = list(waits)
    tops = {rank: top(text) for rank, text in stacks_of(workdir, pids).items()}
    return {rank: _describe(rank, place, tops.get(rank), lines) for rank, place in running.items()}


def _describe(rank: int, place: str, where: str | None, waits: Iterable[str]) -> str:
    at = f", at {where}" if where else ""
    own = [line for line in waits if re.match(rf"rank {rank}\b", line)]
    return "\n    ".join([f"inside {place}{at}", *own])


def top(stacks: str) -> str:
    """Return file, line and function of the innermost frame that is SGLang's or the user's.

    In the thread that has answered, which is the main one where that can run Python.
    """
    current = stacks.rpartition("Current thread")[2]
    for file, line, function in _FRAME.findall(current):
        if frames.is_caller_code(file):
            return f"{os.path.basename(file)}:{line} in {function}"
    return ""
