"""Runs what watches a test on this rank, and what disturbs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_pprank.checks import CHECKS
from pytest_pprank.checks.base import Watch
from pytest_pprank.faults import FAULTS
from pytest_pprank.faults.base import Disturbance
from pytest_pprank.lifecycle import Context, Lifecycle
from pytest_pprank.protocol.findings import Finding
from pytest_pprank.protocol.items import test_name
from pytest_pprank.registry import Registry

if TYPE_CHECKING:
    from pytest_pprank.protocol.messages import RunTest
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler
    from pytest_pprank.sglang.driver.engine import Engine
    from pytest_pprank.sglang.events.types import Quiescent

_running: TestLives | None = None


class Lives:
    """Those of one kind in one test, in the order of their table."""

    def __init__(self, registry: Registry, means: Iterable[Context]) -> None:
        self.means = tuple(means)
        made = [(each, each.guard(_make, registry, each)) for each in self.means]
        self._all: list[tuple[Context, Lifecycle]] = [
            (m, life) for m, life in made if life is not None
        ]

    def begin(self) -> None:
        """Begin them."""
        for means, life in self._all:
            means.guard(life.begin)

    def loop(self, engine: Engine) -> None:
        """An engine was made."""
        for means, life in self._all:
            means.guard(life.loop, engine)
            if type(life).iteration is not Lifecycle.iteration:
                engine.at_start_of_iteration(_each_iteration(means, life, engine))

    def quiescent(self, look: Callable[[], Quiescent]) -> None:
        """Nothing may be held now. `look` is called where somebody wants to know."""
        wanting = [each for each in self._all if type(each[1]).quiescent is not Lifecycle.quiescent]
        if wanting:
            left = look()
            for means, life in wanting:
                means.guard(life.quiescent, left)

    def end(self, *, failed: bool) -> dict[str, object]:
        """End them, and return their evidence by name."""
        for means, life in () if failed else self._all:
            means.guard(life.end)
        self.close()
        given = {m.name: m.guard(_evidence, life) for m, life in self._all if not m.off}
        return {name: brought for name, brought in given.items() if brought is not None}

    def close(self) -> None:
        """Undo what is still in force, the last one's first."""
        for means in reversed(self.means):
            means.close()


def _make(registry: Registry, means: Context) -> Lifecycle:
    row = registry.row_of(means.name)
    life: object = row.load()(means)
    if not isinstance(life, Lifecycle):
        base = row.base.partition(":")[2]
        raise TypeError(f"{row.place} is not a class with the base pytest_pprank.{base}")
    return life


def _each_iteration(means: Context, life: Lifecycle, engine: Engine) -> Callable[[], None]:
    return lambda: means.guard(life.iteration, engine.iterations)


def _evidence(life: Lifecycle) -> object:
    brought = life.evidence()
    json.dumps(brought)  # what cannot travel is a failure of this one, not of all
    return brought


class TestLives:
    """The checks and the faults of one test."""

    def __init__(self, order: RunTest, pprank: Pprank, send: Callable[[Finding], None]) -> None:
        self._pprank = pprank
        watching = (Watch(name, pprank, send) for name in order.sanitizers)
        self.checks = Lives(CHECKS, watching)
        self.faults = Lives(FAULTS, _disturbances(order, pprank, send))
        self.evidence: dict[str, object] = {}

    def quiescent(self, look: Callable[[], Quiescent]) -> bool:
        """Nothing may be held now; returns whether something was found."""
        before = self._found()
        self.checks.quiescent(look)
        self.faults.quiescent(look)
        return self._found() > before

    def end(self) -> None:
        """The test is over, its fixtures torn down. Faults first: checks see what they leave."""
        for lives in (self.faults, self.checks):
            self.evidence |= lives.end(failed=self._pprank.failed)

    def brought(self) -> str:
        """Return, as JSON, what the controller needs to know beside the findings."""
        means = (*self.checks.means, *self.faults.means)
        counts = {key: n for each in means for key, n in each.counts.items() if n > 1}
        told: dict[str, object] = {"evidence": self.evidence, "counts": counts}
        told["given_up"] = bool(means and self._pprank.spoiled)
        told["off"] = {each.name: each.off for each in self.checks.means if each.off}
        return json.dumps(told) if any(told.values()) else ""

    def did(self) -> str:
        """Return, in words, what the faults did."""
        return "; ".join(filter(None, map(str, self.faults.means)))

    def close(self) -> None:
        """Leave nothing in force, however the test has ended."""
        self.faults.close()
        self.checks.close()

    def _found(self) -> int:
        means = (*self.checks.means, *self.faults.means)
        return sum(sum(each.counts.values()) for each in means)


def _disturbances(
    order: RunTest, pprank: Pprank, send: Callable[[Finding], None]
) -> Iterator[Disturbance]:
    schedule = order.perturb
    if schedule is not None:
        test, asked = test_name(order.key), schedule.by_name
        for name in schedule.names:
            yield Disturbance(name, schedule.seed, test, pprank, send, asked=asked)


@contextmanager
def living(order: RunTest, pprank: Pprank, send: Callable[[Finding], None]) -> Iterator[TestLives]:
    """Run a test's checks and faults inside the block; after it they have ended."""
    global _running
    _running = lives = TestLives(order, pprank, send)
    try:
        lives.checks.begin()
        yield lives
        lives.end()
    finally:
        lives.close()
        _running = None


def loop_made(engine: Engine) -> None:
    """Say that an engine was made, and its loops have not been entered."""
    if _running is not None:
        _running.checks.loop(engine)
        _running.faults.loop(engine)


def call_begins() -> None:
    """Say that the test's call begins."""
    if _running is not None:
        _running.faults.begin()


def at_quiescence(scheduler: Scheduler, pprank: Pprank) -> None:
    """Say that the event loops of a Scheduler have been left in good order, with all work done.

    The test counts as failed on this rank where a check finds something then.
    """
    if _running is None or pprank.failed:
        return

    def look() -> Quiescent:
        from pytest_pprank.sglang.events.quiescent import quiescent

        return quiescent(scheduler)

    if _running.quiescent(look):
        pprank.failed = True
