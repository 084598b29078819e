"""How long what the ledgers of a running test say has stayed the same."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pytest_pprank.oplog.read.waits import Waits


@dataclass(frozen=True)
class Waiting:
    """Who waits for whom (see waits.Waits); `seconds`: how long exactly so.

    `blocked`: ranks with a thread that waits in an operation.
    """

    waits: Waits
    blocked: frozenset[int]
    seconds: float

    def standstill(self, inside: Collection[int]) -> str:
        """How the ranks `inside` have stopped each other: ``deadlock``, ``mismatch``, or not."""
        if self.waits.deadlock:
            return "deadlock"
        return "mismatch" if self.waits.mismatch and self.blocked >= set(inside) else ""

    def wait_in_vain(self, inside: Collection[int]) -> bool:
        """Whether all ranks `inside` need, directly or not, ranks that have left the test."""
        return bool(inside) and self.waits.stuck >= set(inside)


class WaitWatch:
    """What was seen of the ledgers of a worker group during one test."""

    def __init__(self) -> None:
        self._key: object = None
        self._since = 0.0

    def update(self, waits: Waits, blocked: frozenset[int], now: float) -> Waiting:
        """Take what the ledgers say `now`; returns it with its age."""
        if waits.key != self._key:
            self._key, self._since = waits.key, now
        return Waiting(waits, blocked, now - self._since)
