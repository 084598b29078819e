"""How long processes have been seen stopped."""

from __future__ import annotations

from collections.abc import Collection


class StopWatch:
    """How long ranks have been stopped: those that others wait for will not come."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def look(
        self, ranks: Collection[int], stopped: Collection[int], now: float
    ) -> dict[int, float]:
        """Return, by rank, for how many seconds it has been seen stopped, of all `ranks`."""
        for rank in ranks:
            if rank in stopped:
                self._since.setdefault(rank, now)
            else:
                self._since.pop(rank, None)
        return {rank: now - since for rank, since in self._since.items()}
