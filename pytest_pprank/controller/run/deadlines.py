"""The deadlines of a test, kept outside the ranks; the clock stops while somebody debugs."""

from __future__ import annotations

from collections.abc import Mapping

SLOW = 6
"""The factor on the grace period in setup, and while ranks write the report of a failure.

In setup, roles start different things: prefill profiles its chunk sizes while decode has nothing to
do. A rank that waits for one that has passed setup is found sooner, by the ledgers. A report runs
none of the test's code, but pytest's, on whole files of SGLang's.
"""


class Deadlines:
    """The deadline of a test, and the one of the other ranks once the first has finished.

    `timeout` and `grace` are in seconds, `now` is the time of any clock. Paused time does not
    count.
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
        """Let the clock go on, unless another rank still has it paused."""
        if self._paused_by.pop(rank, None) is not None and not self._paused_by:
            self._lost += now - self._paused_at

    @property
    def paused_by(self) -> Mapping[int, str]:
        """The ranks that have stopped the clock, with their reasons."""
        return self._paused_by

    def since_start(self, now: float) -> float:
        """Return the seconds since the test began."""
        return self._counted(now) - self._start

    def since_first_arrival(self, now: float) -> float:
        """Return the seconds since the first rank finished its phase; 0 while none has."""
        first = self._first_arrival
        return 0.0 if first is None else self._counted(now) - first

    def mark_arrivals(self, arrived: bool, now: float) -> None:
        """Note whether some ranks have finished their phase; when none has, a new phase begins."""
        if arrived and self._first_arrival is None:
            self._first_arrival = self._counted(now)
        elif not arrived and self._first_arrival is not None:
            self._phase_start, self._first_arrival = self._counted(now), None

    def left(self, now: float, *, failed: bool, slow: bool = False) -> float:
        """Return the seconds left until the earlier deadline.

        `failed`: whether a rank that has finished has failed; `slow`: whether the others are at
        something for which they get SLOW times the grace period. A failed rank will not take part
        any more, so its peers get the plain grace period. After a success the peers may take as
        long again as that rank took: machines are shared, and stages are not equal.
        """
        end = self._start + self.timeout
        if self._first_arrival is not None:
            took = self._first_arrival - self._phase_start
            grace = self.grace * (SLOW if slow else 1)
            patience = grace if failed else max(grace, took)
            end = min(end, self._first_arrival + patience)
        return end - self._counted(now)

    def _counted(self, now: float) -> float:
        """Return the time without the pauses."""
        return (self._paused_at if self._paused_by else now) - self._lost
