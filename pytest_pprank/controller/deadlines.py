"""How long a test may still take, seen from outside; the clock stops while somebody debugs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

IN_SETUP = 6
"""How many times the grace the peers of a rank get that has got through setup.

Roles start different things: prefill profiles its chunk sizes while decode has nothing to do. Who
waits there for a rank that is through is found without it, by the ledgers.
"""


class Deadlines:
    """The deadline of a test, and the one its other ranks get once the first is through.

    `timeout` and `grace` are seconds. Times are those of `clock`, less what was spent paused.
    """

    def __init__(
        self, timeout: float, grace: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.timeout = timeout
        self.grace = grace
        self._clock = clock
        self._paused_by: dict[int, str] = {}
        self._paused_at = 0.0
        self._lost = 0.0
        self._start = self._phase_start = self.now()
        self._first_arrival: float | None = None

    def now(self) -> float:
        """The time, less the pauses."""
        return (self._paused_at if self._paused_by else self._clock()) - self._lost

    def pause(self, rank: int, reason: str) -> None:
        """Stop the clock on behalf of a rank."""
        if not self._paused_by:
            self._paused_at = self._clock()
        self._paused_by[rank] = reason

    def resume(self, rank: int) -> None:
        """Let the clock go on, unless another rank still wants it stopped."""
        if self._paused_by.pop(rank, None) is not None and not self._paused_by:
            self._lost += self._clock() - self._paused_at

    @property
    def paused_by(self) -> Mapping[int, str]:
        """Who has stopped the clock, and why."""
        return self._paused_by

    @property
    def since_start(self) -> float:
        """Seconds since the test began."""
        return self.now() - self._start

    @property
    def since_first_arrival(self) -> float:
        """Seconds since the first rank was through; 0 while none is."""
        return 0.0 if self._first_arrival is None else self.now() - self._first_arrival

    def mark_arrivals(self, arrived: bool) -> None:
        """Note whether some ranks are through with their phase; when none is, a new one begins."""
        if arrived and self._first_arrival is None:
            self._first_arrival = self.now()
        elif not arrived and self._first_arrival is not None:
            self._phase_start, self._first_arrival = self.now(), None

    def left(self, *, failed: bool, setup: bool = False) -> float:
        """Seconds left; `failed`: whether a rank that is through has failed; `setup`: whether it is
        only through with its setup.

        A failed rank will not come back: the plain grace. After one that went well its peers may
        take as long again as it took: machines are shared, and stages are not equal.
        """
        end = self._start + self.timeout
        if self._first_arrival is not None:
            took = self._first_arrival - self._phase_start
            grace = self.grace * (IN_SETUP if setup else 1)
            patience = self.grace if failed else max(grace, took)
            end = min(end, self._first_arrival + patience)
        return end - self.now()


def is_traced(pid: int) -> bool:
    """Say whether a debugger such as gdb is attached to a process: it is slow on purpose then."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return any(
        line.startswith("TracerPid:") and line.split()[1] != "0" for line in status.splitlines()
    )
