"""Ask ranks for the Python stacks of all their threads, from outside."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from pytest_pprank.worker.process import STACKS_SIGNAL, stacks_file

_WAIT_SECONDS = 2.0
_POLL_SECONDS = 0.02
_OWN_THREAD = "pytest_pprank/worker/link.py"
_PYTEST_FRAMES = ("in pytest_pyfunc_call", "in call_fixture_func", "in pytest_runtest_protocol")


def ask_for_stacks(workdir: Path, pids: dict[int, int]) -> tuple[tuple[str, str], ...]:
    """Return (title, text) per rank. `pids` maps a rank to its process id.

    faulthandler writes from the signal handler itself, so this works while the rank is inside a
    blocking call that has released the GIL or not; a stopped process stays silent.
    """
    before = {rank: _size(stacks_file(workdir, rank)) for rank in pids}
    asked = [rank for rank, pid in pids.items() if _signal(pid)]
    deadline = time.monotonic() + _WAIT_SECONDS
    texts: dict[int, str] = {}
    while len(texts) < len(asked) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        for rank in asked:
            text = _read(stacks_file(workdir, rank), before[rank])
            # one stack per thread, the current one last to be written and named as such
            if "Current thread" in text and text == _read(stacks_file(workdir, rank), before[rank]):
                texts[rank] = text
    silent = "(no answer: the process may be stopped)"
    return tuple(
        (f"Stacks of rank {rank}", _trim(texts[rank]) if rank in texts else silent)
        for rank in sorted(pids)
    )


def _trim(text: str) -> str:
    """Leave out our own reader thread, and what is below the test in each stack."""
    threads = re.split(r"\n(?=(?:Current )?[Tt]hread 0x)", text.strip())
    shown = [_above_pytest(thread) for thread in threads if _OWN_THREAD not in thread]
    return "\n".join(shown)


def _above_pytest(thread: str) -> str:
    lines = thread.splitlines()
    for index, line in enumerate(lines):
        if any(mark in line for mark in _PYTEST_FRAMES):
            return "\n".join(lines[:index])
    return thread


def _signal(pid: int) -> bool:
    try:
        os.kill(pid, STACKS_SIGNAL)
        return True
    except ProcessLookupError:
        return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read(path: Path, offset: int) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")
