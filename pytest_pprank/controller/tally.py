"""Counts the worker groups of a run, by why each was started, and where the time has gone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_pprank.errors import GroupError
from pytest_pprank.planning import Plan
from pytest_pprank.topology import Topology

_TOPOLOGY = ("started anew for its topology", "started anew for their topology")
_ASKED = ("for a test that asked for one", "for tests that asked for one")
_FAILED = ("replaced after a failure",) * 2
_PASSED = ("replaced after a test that passed",) * 2
_WAITED_FOR = ("started again after other runs",) * 2
_NOT_STARTED = ("that could not start",) * 2
_ORDER = (_TOPOLOGY, _ASKED, _FAILED, _PASSED, _WAITED_FOR, _NOT_STARTED)
"""All reasons, in the words for one group and for several."""


class GroupTally:
    """The counts of one run. A group is replaced if the next one is for the same topology."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._ended: dict[Topology, tuple[str, str]] = {}
        """The topology of the group before, with the reason why no other test may use it."""
        self._start_seconds = self._test_seconds = 0.0

    def spoiled(self, topology: Topology, *, red: bool) -> None:
        """Note that a test has left its group unusable. `red`: it failed, as expected or not."""
        self._ended = {topology: _FAILED if red else _PASSED}

    def given_back(self, topology: Topology) -> None:
        """Note that a group has ended because other runs wait for what it has leased."""
        self._ended = {topology: _WAITED_FOR}

    @contextmanager
    def starting(self, plan: Plan) -> Iterator[None]:
        """Count the group that the block starts, and its seconds."""
        began = time.monotonic()
        why = _ASKED if plan.fresh else self._ended.get(plan.topology, _TOPOLOGY)
        self._ended = {}
        try:
            yield
        except GroupError:
            why = _NOT_STARTED
            raise
        finally:
            self._counts[why] += 1
            self._start_seconds += time.monotonic() - began

    @contextmanager
    def testing(self) -> Iterator[None]:
        """Count the seconds of the block, in which a test runs."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._test_seconds += time.monotonic() - began

    def summary(self) -> str:
        """Return the counts and seconds in one line."""
        total = sum(self._counts.values())
        each = [(self._counts[why], why) for why in _ORDER if self._counts[why]]
        why = ", ".join(f"{count} {words[count > 1]}" for count, words in each)
        return (
            f"{total} worker group{'s' * (total != 1)}: {why}; {self._start_seconds:.1f} s of "
            f"starts, {self._test_seconds:.1f} s of tests"
        )
