"""What the kernel tells of a process: ``/proc/PID/stat``, see proc(5)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stat(NamedTuple):
    """`state`: one letter, such as ``T`` for stopped. `started`: in clock ticks since boot."""

    state: str
    parent: int
    started: int


def stat_of(pid: int) -> Stat | None:
    """Return what a process is now; None where there is none, or it cannot be seen."""
    try:
        # the name of the program, in brackets, may hold anything
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return Stat(fields[0].decode(), int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def children_of(parent: int) -> set[int]:
    """Return the processes whose parent that one is now."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid for pid in pids if (seen := stat_of(pid)) is not None and seen.parent == parent}
