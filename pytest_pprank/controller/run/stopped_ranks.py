"""How long processes have been seen stopped."""

from __future__ import annotations

from collections.abc import Collection


class StoppedRanks:
    """How long ranks have been stopped: those that others wait for will not come."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def update(self, stopped: Collection[int], now: float) -> dict[int, float]:
        """Take who is seen `stopped`, of those still inside; returns for how many seconds it is."""
        self._since = {rank: self._since.get(rank, now) for rank in stopped}
        return {rank: now - since for rank, since in self._since.items()}
