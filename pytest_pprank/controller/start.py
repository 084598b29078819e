"""How long a worker group took to start, or why it could not, with the errors of its ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_pprank.words import plural_ranks

_OTHERS_SECONDS = 1.0
"""How long to wait for errors of other ranks after the first one."""


class StartClock:
    """Measures the parts of a start, in seconds; `tick` is called with what is waited for."""

    def __init__(self, tick: Callable[[str], None] = lambda _: None) -> None:
        self.tick = tick
        self.parts: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, part: str) -> None:
        """End the part `part`, and begin the next."""
        now = time.monotonic()
        self.parts[part] = now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """The sum of all parts."""
        return sum(self.parts.values())


class StartErrors:
    """Collects the errors of ranks that start at the same time; equal errors are reported once."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._reported: dict[int, str] = {}
        self._lost: list[int] = []
        self._first = 0.0

    def __bool__(self) -> bool:
        return bool(self._reported or self._lost)

    def add(self, rank: int, text: str) -> None:
        """Note the error that a rank has reported."""
        self._note()
        self._reported[rank] = text

    def lost(self, rank: int) -> None:
        """Note that a rank is gone; it may have reported an error before."""
        self._note()
        if rank not in self._reported:
            self._lost.append(rank)

    def _note(self) -> None:
        self._first = self._first or time.monotonic()

    def complete(self, ready: set[int]) -> bool:
        """Return whether no further error is to be waited for."""
        known = len(ready | set(self._reported) | set(self._lost))
        late = time.monotonic() > self._first + _OTHERS_SECONDS
        return bool(self) and (known == self._world_size or late)

    def text(self, describe_exits: Callable[[list[int]], str]) -> str:
        """Return all errors; `describe_exits(ranks)` describes ranks that died without an error.

        elastic ends the peers of a failed rank, so their deaths are not reported.
        """
        if not self._reported:
            return describe_exits(self._lost)
        ranks_by_text: dict[str, list[int]] = {}
        for rank, text in sorted(self._reported.items()):
            ranks_by_text.setdefault(text, []).append(rank)
        return "\n".join(
            f"{plural_ranks(ranks)} could not start: {text}"
            for text, ranks in ranks_by_text.items()
        )
