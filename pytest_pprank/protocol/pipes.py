"""The named pipes for stdout and stderr of each rank, in the worker group's folder."""

from __future__ import annotations

from pathlib import Path

STREAMS = ("stdout", "stderr")
"""In the order of their file descriptors, 1 and 2."""


def pipe_file(workdir: Path, rank: int, stream: str) -> Path:
    """Return the named pipe of a rank's `stream`; the controller creates it before the start."""
    return workdir / f"{stream}{rank}"
