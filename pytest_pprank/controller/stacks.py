"""Requests the Python stacks of all threads of ranks, from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from pytest_pprank.controller.process_state import describe_silent
from pytest_pprank.protocol.stacks import STACKS_SIGNAL, stacks_file
from pytest_pprank.report.stacks import fold, trim_stacks

_WAIT_SECONDS = 2.0
_POLL_SECONDS = 0.02


def ask_for_stacks(workdir: Path, pids: dict[int, int]) -> tuple[tuple[str, str], ...]:
    """Return (title, text) per rank. `pids` maps a rank to its process id.

    For a process that does not answer, for example because it is stopped, the text is what can be
    seen from outside.
    """
    texts = stacks_of(workdir, pids)
    return fold("Stacks", {rank: _shown(texts.get(rank), pids[rank]) for rank in pids})


def stacks_of(workdir: Path, pids: Mapping[int, int]) -> dict[int, str]:
    """Return what faulthandler writes in each process; processes that do not answer are left out.

    It writes from the signal handler itself, so this works while the rank is inside a blocking
    call, with or without the GIL.
    """
    before = {rank: _size(stacks_file(workdir, rank)) for rank in pids}
    asked = [rank for rank, pid in pids.items() if _signal(pid)]
    deadline = time.monotonic() + _WAIT_SECONDS
    texts: dict[int, str] = {}
    while len(texts) < len(asked) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        for rank in asked:
            text = _read(stacks_file(workdir, rank), before[rank])
            # faulthandler writes one stack per thread, the one titled "Current thread" last
            if "Current thread" in text and text == _read(stacks_file(workdir, rank), before[rank]):
                texts[rank] = text
    return texts


def _shown(text: str | None, pid: int) -> str:
    return describe_silent(pid) if text is None else trim_stacks(text)


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
