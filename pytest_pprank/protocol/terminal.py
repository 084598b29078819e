"""What debuggers have in a group's folder: a socket that passes the terminal, and marks."""

from __future__ import annotations

from pathlib import Path

Attributes = list[int | list[bytes | int]]
"""What termios.tcgetattr returns."""


def terminal_socket(workdir: Path) -> Path:
    """Return the socket on which the controller passes its standard input and output."""
    return workdir / "terminal"


def attached_file(workdir: Path, rank: int) -> Path:
    """Return the file that exists while a debugger is attached to a rank, or waited for."""
    return workdir / f"attached{rank}"
