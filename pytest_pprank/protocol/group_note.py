"""What a worker group says about itself to other processes of its user, in its folder."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_pprank.proc import stat_of

_NOTE, _TEST = "group.json", "test"


@dataclass(frozen=True)
class RankNote:
    """A rank: its name, process, and the start of that in clock ticks since boot."""

    rank: int
    name: str
    pid: int
    started: int

    @classmethod
    def of(cls, rank: int, name: str, pid: int) -> RankNote:
        """Return the note of a rank that runs."""
        seen = stat_of(pid)
        return cls(rank, name, pid, seen.started if seen is not None else -1)

    @property
    def alive(self) -> bool:
        """Whether the process runs, and is not a later one with the same id."""
        seen = stat_of(self.pid)
        return seen is not None and seen.started == self.started and seen.state != "Z"


@dataclass(frozen=True)
class GroupNote:
    """A worker group: its name, the process id of its pytest, and its ranks."""

    name: str
    pytest: int
    ranks: tuple[RankNote, ...]

    def write(self, workdir: Path) -> None:
        """Write the note into the group's folder, atomically."""
        new = workdir / f"{_NOTE}.new"
        new.write_text(json.dumps(asdict(self)))
        new.rename(workdir / _NOTE)

    @classmethod
    def read(cls, workdir: Path) -> GroupNote | None:
        """Return the note in a group's folder; None while there is none."""
        try:
            data = json.loads((workdir / _NOTE).read_text())
            ranks = tuple(RankNote(**each) for each in data["ranks"])
            return cls(data["name"], data["pytest"], ranks)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def note_test(workdir: Path, nodeid: str) -> None:
    """Note the test that a group runs; an empty node id between tests."""
    with suppress(OSError):  # the folder is gone with its group
        (workdir / _TEST).write_text(nodeid)


def running_test(workdir: Path) -> str:
    """Return the node id of the test that a group runs; empty between tests."""
    try:
        return (workdir / _TEST).read_text()
    except OSError:
        return ""
