"""How a rank is asked for its stacks, and where it writes them."""

from __future__ import annotations

import signal
from pathlib import Path

STACKS_SIGNAL = signal.SIGUSR1


def stacks_file(workdir: Path, rank: int) -> Path:
    """Return the file into which a rank writes its stacks when it gets STACKS_SIGNAL."""
    return workdir / f"stacks{rank}.txt"
