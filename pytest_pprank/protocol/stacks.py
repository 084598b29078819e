"""How to request the stacks of a rank, and the file it writes them to."""

from __future__ import annotations

import signal
from pathlib import Path

STACKS_SIGNAL = signal.SIGUSR1


def stacks_file(workdir: Path, rank: int) -> Path:
    """Return the file to which a rank writes its stacks on STACKS_SIGNAL."""
    return workdir / f"stacks{rank}.txt"
