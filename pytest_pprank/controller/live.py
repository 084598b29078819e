"""Shows lines of the ranks in the terminal as they are printed (--pprank-live, or pytest's -s)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

_COLORS = ("cyan", "yellow", "green", "purple", "blue", "red")
_LONGEST_LINE = 64 * 1024
_MOST_HELD = 1000
"""How many pieces of output are kept while a rank is debugged; the last ones."""


class Terminal(Protocol):
    """The part of pytest's terminal reporter that is used here."""

    def ensure_newline(self) -> None:
        """Begin a new line unless the current one is empty."""

    def write(self, content: str, *, flush: bool = False, **markup: bool) -> None:
        """Write text with markup."""


class LiveLines:
    """Shows whole lines with the rank's prefix, never mixed; an output listener.

    `before` is called before each write, to remove a temporary text such as the progress line.
    """

    def __init__(self, terminal: Terminal, before: Callable[[], None] = lambda: None) -> None:
        self._terminal = terminal
        self._before = before
        self._partial: dict[tuple[int, str], bytes] = {}
        self._held: deque[tuple[int, list[bytes]]] | None = None

    def hold(self, held: bool) -> None:
        """Keep what comes while another one writes to the terminal, and show it after that."""
        kept, self._held = self._held, deque(maxlen=_MOST_HELD) if held else None
        for rank, lines in kept or ():
            self._show(rank, lines)

    def __call__(self, rank: int, stream: str, data: bytes) -> None:
        """Show the lines that the data completes."""
        *lines, rest = (self._partial.pop((rank, stream), b"") + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
        elif rest:
            self._partial[rank, stream] = rest
        if lines:
            self._show(rank, lines)

    def flush(self) -> None:
        """Show unfinished lines, too; called at the end of a test."""
        for (rank, _), rest in sorted(self._partial.items()):
            self._show(rank, [rest])
        self._partial.clear()

    def _show(self, rank: int, lines: list[bytes]) -> None:
        if self._held is not None:
            self._held.append((rank, lines))
            return
        self._before()
        self._terminal.ensure_newline()
        color = {_COLORS[rank % len(_COLORS)]: True}
        for line in lines:
            self._terminal.write(f"[pp{rank}] ", **color)
            text = line.decode("utf-8", "replace").rstrip("\r")
            self._terminal.write(f"{text}\n", flush=line is lines[-1])
