"""Reads ``/proc/PID/stat``, see proc(5)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stat(NamedTuple):
    """`state`: one letter, such as ``T`` for stopped. `started`: in clock ticks since boot."""

    state: str
    parent: int
    started: int


def stat_of(pid: int) -> Stat | None:
    """Return the state of a process; None if it does not exist or cannot be read."""
    try:
        # the program's name, in brackets, may contain spaces and brackets itself
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return Stat(fields[0].decode(), int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def children_of(parent: int) -> set[int]:
    """Return the ids of all processes whose parent is `parent`."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid for pid in pids if (seen := stat_of(pid)) is not None and seen.parent == parent}
