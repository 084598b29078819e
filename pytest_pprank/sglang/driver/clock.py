"""`engine.clock`: time that a test owns, as SGLang's modules see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver.virtual_time import VirtualTime, virtual_time
from pytest_pprank.words import split_instance


class Clock:
    """SGLang's clocks on each stage: they run, until a test moves them on or lets them stand.

    Real are the clocks of torch, of pytest and of libraries that SGLang calls (time limits of
    sockets, of queues and futures). All ranks must call the same methods with the same arguments.
    `stages`: numbers of stages (None: all); `role`: of `disagg`, one role (None: both), or with
    `index` one instance of it.

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
        self,
        seconds: float,
        stages: Sequence[int] | None = None,
        *,
        role: str | None = None,
        index: int | None = None,
    ) -> None:
        """Move the clocks on by `seconds`, at once: waits and time limits that end are over."""
        places = self._places("advance", stages, role, index)
        given = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not given or not math.isfinite(seconds) or seconds <= 0:
            raise UsageError(
                f"{self._name}.clock.advance: seconds={seconds!r}; allowed: a number above 0"
            )
        self._note(f"clock.advance({seconds!r}, {stages!r}, {role!r}, {index!r})")
        for place in places:
            self._moved[place] += round(seconds * 10**9)
        if self._here in places:
            self._time.advance(round(seconds * 10**9))

    @contextmanager
    def frozen(
        self,
        stages: Sequence[int] | None = None,
        *,
        role: str | None = None,
        index: int | None = None,
    ) -> Iterator[None]:
        """In this block the clocks stand, so that only `advance` moves them.

        A sleep of SGLang's event loop moves them on by its length. After ``advance(T)``, with T a
        multiple of 1/512 s, exactly T seconds have passed by SGLang's wall clock (`time.time`); by
        the other clocks a few nanoseconds more, one for each reading.
        """
        begun = self._places("frozen", stages, role, index) - self._standing
        self._note(f"clock.frozen({stages!r}, {role!r}, {index!r})")
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
        self, call: str, stages: Sequence[int] | None, role: str | None, index: int | None
    ) -> set[tuple[str, int]]:
        instances = self._instances(call, role, index)
        own = [place for place in self._moved if place[0] in instances]
        if stages is None:
            return set(own)
        numbers = {stage for _, stage in own}
        if isinstance(stages, (str, int)) or not stages or not set(stages) <= numbers:
            raise UsageError(
                f"{self._name}.clock.{call}: stages={stages!r}; allowed: a list of numbers from 0 "
                f"to {max(numbers)}"
            )
        return {place for place in own if place[1] in stages}

    def _instances(self, call: str, role: str | None, index: int | None) -> list[str]:
        """Return the instances of a role, or the one with this number, by their names."""
        named = {split_instance(name): name for name in self._sizes}
        roles = dict.fromkeys(of for of, _ in named)
        if role is not None and role not in roles:
            allowed = " or ".join(map(repr, roles))
            raise UsageError(f"{self._name}.clock.{call}: role={role!r}; allowed: {allowed}")
        own = {number: name for (of, number), name in named.items() if role in (None, of)}
        if index is None:
            return [name for (of, _), name in named.items() if role in (None, of)]
        if role is None or index not in own:
            most = f" with role={role!r}, 0 to {max(own)}" if role else " with a role only"
            raise UsageError(f"{self._name}.clock.{call}: index={index!r}; allowed:{most}")
        return [own[index]]

    @property
    def _time(self) -> VirtualTime:
        """The time of this rank. In tests that do not ask for it, nothing is changed."""
        if self._used is None:
            self._used = virtual_time()
        return self._used
