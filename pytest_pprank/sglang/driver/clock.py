"""`engine.clock`: time that a test owns, as SGLang's modules see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver.virtual_time import VirtualTime, virtual_time


class Clock:
    """SGLang's clocks on each stage: they run, until a test moves them on or lets them stand.

    Real are the clocks of torch, of pytest and of libraries that SGLang calls (time limits of
    sockets, of queues and futures). All ranks must call the same methods with the same arguments.
    `stages`: numbers of stages (None: all); `role`: of `disagg`, one role (None: both).

    At the end of a test all clocks run again, and those that are behind are moved on: they never
    go back, and stages of a worker group never differ for long.
    """

    def __init__(
        self,
        name: str,
        sizes: Mapping[str, int],
        here: tuple[str, int],
        note: Callable[[str], object],
    ) -> None:
        self._name = name
        self._sizes = sizes
        self._here = here
        self._note = note
        places = [(role, stage) for role, size in sizes.items() for stage in range(size)]
        self._moved = dict.fromkeys(places, 0)
        self._standing: set[tuple[str, int]] = set()
        self._used: VirtualTime | None = None

    def advance(
        self, seconds: float, stages: Sequence[int] | None = None, *, role: str | None = None
    ) -> None:
        """Move the clocks on by `seconds`, at once: waits and time limits that end are over."""
        places = self._places("advance", stages, role)
        given = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not given or not math.isfinite(seconds) or seconds <= 0:
            raise UsageError(
                f"{self._name}.clock.advance: seconds={seconds!r}; allowed: a number above 0"
            )
        self._note(f"clock.advance({seconds!r}, {stages!r}, role={role!r})")
        for place in places:
            self._moved[place] += round(seconds * 10**9)
        if self._here in places:
            self._time.advance(round(seconds * 10**9))

    @contextmanager
    def frozen(
        self, stages: Sequence[int] | None = None, *, role: str | None = None
    ) -> Iterator[None]:
        """In this block the clocks stand, so that only `advance` moves them.

        A sleep of SGLang's event loop moves them on by its length. After ``advance(T)``, with T a
        multiple of 1/512 s, exactly T seconds have passed by SGLang's wall clock (`time.time`); by
        the other clocks a few nanoseconds more, one for each reading.
        """
        begun = self._places("frozen", stages, role) - self._standing
        self._note(f"clock.frozen({stages!r}, role={role!r})")
        self._standing |= begun
        if self._here in begun:
            self._time.stop()
        try:
            yield
        finally:
            self._standing -= begun
            if self._here in begun:
                self._time.run()

    def run(self) -> None:
        """Let all clocks run again, each from where it is."""
        self._standing.clear()
        if self._used is not None:
            self._used.run()

    def end(self) -> None:
        """Let all clocks run again, and move on those that are behind: the end of the test."""
        self.run()
        last = max(self._moved.values())
        if behind := last - self._moved.get(self._here, last):
            self._time.advance(behind)
        self._moved = dict.fromkeys(self._moved, 0)

    def _places(
        self, call: str, stages: Sequence[int] | None, role: str | None
    ) -> set[tuple[str, int]]:
        if role is not None and role not in self._sizes:
            allowed = " or ".join(repr(name) for name in self._sizes)
            raise UsageError(f"{self._name}.clock.{call}: role={role!r}; allowed: {allowed}")
        of_roles = [place for place in self._moved if role in (None, place[0])]
        if stages is None:
            return set(of_roles)
        numbers = {stage for _, stage in of_roles}
        if isinstance(stages, (str, int)) or not stages or not set(stages) <= numbers:
            raise UsageError(
                f"{self._name}.clock.{call}: stages={stages!r}; allowed: a list of numbers from 0 "
                f"to {max(numbers)}"
            )
        return {place for place in of_roles if place[1] in stages}

    @property
    def _time(self) -> VirtualTime:
        """The time of this rank. In tests that do not ask for it, nothing is changed."""
        if self._used is None:
            self._used = virtual_time()
        return self._used
