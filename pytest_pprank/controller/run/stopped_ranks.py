"""Measures for how long processes have been stopped."""

from __future__ import annotations

from collections.abc import Collection


class StoppedRanks:
    """For how long ranks have been stopped by a signal; other ranks would wait for them in vain."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def update(self, stopped: Collection[int], now: float) -> dict[int, float]:
        """Take the ranks inside that are `stopped` now; return the seconds each has been so."""
        self._since = {rank: self._since.get(rank, now) for rank in stopped}
        return {rank: now - since for rank, since in self._since.items()}
