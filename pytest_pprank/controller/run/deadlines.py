"""How long a test may still take, seen from outside; the clock stops while somebody debugs it."""

from __future__ import annotations

from collections.abc import Mapping

SLOW = 6
"""How many times the grace ranks get in setup, and while they write the report of a failure.

In setup, roles start different things: prefill profiles its chunk sizes while decode has nothing to
do. Who waits there for a rank that is through is found without it, by the ledgers. A report runs
none of the test's code, but pytest's, on whole files of SGLang's.
"""


class Deadlines:
    """The deadline of a test, and the one its other ranks get once the first is through.

    `timeout` and `grace` are seconds, `now` is the time on any clock. What was spent paused does
    not count.
    """

    def __init__(self, timeout: float, grace: float, now: float) -> None:
        self.timeout = timeout
        self.grace = grace
        self._paused_by: dict[int, str] = {}
        self._paused_at = 0.0
        self._lost = 0.0
        self._start = self._phase_start = now
        self._first_arrival: float | None = None

    def pause(self, rank: int, reason: str, now: float) -> None:
        """Stop the clock on behalf of a rank."""
        if not self._paused_by:
            self._paused_at = now
        self._paused_by[rank] = reason

    def resume(self, rank: int, now: float) -> None:
        """Let the clock go on, unless another rank still wants it stopped."""
        if self._paused_by.pop(rank, None) is not None and not self._paused_by:
            self._lost += now - self._paused_at

    @property
    def paused_by(self) -> Mapping[int, str]:
        """Who has stopped the clock, and why."""
        return self._paused_by

    def since_start(self, now: float) -> float:
        """Seconds since the test began."""
        return self._counted(now) - self._start

    def since_first_arrival(self, now: float) -> float:
        """Seconds since the first rank was through; 0 while none is."""
        first = self._first_arrival
        return 0.0 if first is None else self._counted(now) - first

    def mark_arrivals(self, arrived: bool, now: float) -> None:
        """Note whether some ranks are through with their phase; when none is, a new one begins."""
        if arrived and self._first_arrival is None:
            self._first_arrival = self._counted(now)
        elif not arrived and self._first_arrival is not None:
            self._phase_start, self._first_arrival = self._counted(now), None

    def left(self, now: float, *, failed: bool, slow: bool = False) -> float:
        """Seconds left; `failed`: whether a rank that is through has failed; `slow`: whether the
        others are at what may take SLOW times the grace.

        A failed rank will not come back: the plain grace. After one that went well its peers may
        take as long again as it took: machines are shared, and stages are not equal.
        """
        end = self._start + self.timeout
        if self._first_arrival is not None:
            took = self._first_arrival - self._phase_start
            grace = self.grace * (SLOW if slow else 1)
            patience = grace if failed else max(grace, took)
            end = min(end, self._first_arrival + patience)
        return end - self._counted(now)

    def _counted(self, now: float) -> float:
        """The time, less the pauses."""
        return (self._paused_at if self._paused_by else now) - self._lost
