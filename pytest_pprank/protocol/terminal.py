"""How a rank gets the descriptors of the terminal: by a socket in its group's folder."""

from __future__ import annotations

from pathlib import Path

Attributes = list[int | list[bytes | int]]
"""What termios.tcgetattr returns."""


def terminal_socket(workdir: Path) -> Path:
    """Return the socket on which the controller passes its standard input and output."""
    return workdir / "terminal"
