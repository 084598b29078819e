"""Measures for how long the waits of a running test have not changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pytest_pprank.oplog.read.waits import Waits


@dataclass(frozen=True)
class Waiting:
    """The waits of the ranks (see waits.Waits); `seconds`: for how long they have been the same.

    `blocked`: ranks with a thread, or a device, that waits in an operation.
    """

    waits: Waits
    blocked: frozenset[int]
    seconds: float

    def standstill(self, inside: Collection[int]) -> str:
        """Return how the ranks `inside` block each other: ``deadlock``, ``mismatch``, or empty."""
        if self.waits.deadlock:
            return "deadlock"
        return "mismatch" if self.waits.mismatch and self.blocked >= set(inside) else ""

    def wait_in_vain(self, inside: Collection[int]) -> bool:
        """Return whether all ranks `inside` need, directly or not, ranks that have left it."""
        return bool(inside) and self.waits.stuck >= set(inside)


class WaitWatch:
    """The waits of a worker group that were last seen in one test, and since when."""

    def __init__(self) -> None:
        self._key: object = None
        self._since = 0.0

    def update(self, waits: Waits, blocked: frozenset[int], now: float) -> Waiting:
        """Take the waits seen at `now`; return them with their age."""
        if waits.key != self._key:
            self._key, self._since = waits.key, now
        return Waiting(waits, blocked, now - self._since)
