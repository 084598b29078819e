"""Runs the checks that watch a test on this rank, and the faults that disturb it."""

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
from pytest_pprank.trace.record import trace

if TYPE_CHECKING:
    from pytest_pprank.protocol.messages import RunTest
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.compat.objects import Scheduler
    from pytest_pprank.sglang.driver.engine import Engine
    from pytest_pprank.sglang.events.types import Quiescent
    from pytest_pprank.trace.record.recording import EventTrace, Recording

_current: TestLifecycles | None = None


class LifecycleGroup:
    """The checks, or the faults, of one test, in the order of their table."""

    def __init__(self, registry: Registry, contexts: Iterable[Context]) -> None:
        self.contexts = tuple(contexts)
        made = [(each, each.guard(_make, registry, each)) for each in self.contexts]
        self._all: list[tuple[Context, Lifecycle]] = [
            (context, it) for context, it in made if it is not None
        ]

    def begin(self) -> None:
        """Call `begin` of each."""
        for context, lifecycle in self._all:
            context.guard(lifecycle.begin)

    def loop(self, engine: Engine) -> None:
        """Call `loop` of each, and register their `iteration` with the engine."""
        for context, lifecycle in self._all:
            context.guard(lifecycle.loop, engine)
            if type(lifecycle).iteration is not Lifecycle.iteration:
                engine.at_start_of_iteration(_each_iteration(context, lifecycle, engine))

    def quiescent(self, look: Callable[[], Quiescent]) -> None:
        """Call `quiescent` of each that implements it; `look` is called only if there is one."""
        wanting = [each for each in self._all if type(each[1]).quiescent is not Lifecycle.quiescent]
        if wanting:
            left = look()
            for context, lifecycle in wanting:
                context.guard(lifecycle.quiescent, left)

    def end(self, *, failed: bool) -> dict[str, object]:
        """Call `end` of each, unless `failed`; undo everything; return the evidence by name."""
        for context, lifecycle in () if failed else self._all:
            context.guard(lifecycle.end)
        self.close()
        found = {
            context.name: context.guard(_evidence, lifecycle)
            for context, lifecycle in self._all
            if not context.off
        }
        return {name: evidence for name, evidence in found.items() if evidence is not None}

    def close(self) -> None:
        """Undo what is still in force, in reverse order."""
        for context in reversed(self.contexts):
            context.close()


def _make(registry: Registry, context: Context) -> Lifecycle:
    row = registry.row_of(context.name)
    lifecycle: object = row.load()(context)
    if not isinstance(lifecycle, Lifecycle):
        base = row.base.partition(":")[2]
        raise TypeError(f"{row.place} is not a class with the base pytest_pprank.{base}")
    return lifecycle


def _each_iteration(context: Context, lifecycle: Lifecycle, engine: Engine) -> Callable[[], None]:
    return lambda: context.guard(lifecycle.iteration, engine.iterations)


def _evidence(lifecycle: Lifecycle) -> object:
    evidence = lifecycle.evidence()
    json.dumps(evidence)  # raise here, so that only this one fails if its evidence is not JSON
    return evidence


class TestLifecycles:
    """The checks and the faults of one test."""

    def __init__(self, order: RunTest, pprank: Pprank, send: Callable[[Finding], None]) -> None:
        self._pprank = pprank
        self._traced = _traced(pprank)
        watching = (Watch(name, pprank, send) for name in order.sanitizers)
        self.checks = LifecycleGroup(CHECKS, watching)
        self.faults = LifecycleGroup(FAULTS, _disturbances(order, pprank, send))
        self.evidence: dict[str, object] = {}

    def begin(self) -> None:
        """Begin the checks; before them what records the test, which so has their findings."""
        for recording, lifecycle in self._traced:
            recording.guard(lifecycle.begin)
        self.checks.begin()

    def loop(self, engine: Engine) -> None:
        """Notify all that an engine was made."""
        for recording, lifecycle in self._traced:
            recording.guard(lifecycle.loop, engine)
            engine.at_start_of_iteration(_each_iteration(recording, lifecycle, engine))
        self.checks.loop(engine)
        self.faults.loop(engine)

    def quiescent(self, look: Callable[[], Quiescent]) -> bool:
        """Call `quiescent` of all; return whether there was a new finding."""
        before = self._found()
        self.checks.quiescent(look)
        self.faults.quiescent(look)
        return self._found() > before

    def end(self) -> None:
        """End all, after the fixtures are torn down. Faults first: checks see what faults leave."""
        for lifecycles in (self.faults, self.checks):
            self.evidence |= lifecycles.end(failed=self._pprank.failed)

    def results(self) -> str:
        """Return, as JSON, what the controller needs besides the findings; empty for nothing."""
        contexts = (*self.checks.contexts, *self.faults.contexts)
        counts = {key: n for each in contexts for key, n in each.counts.items() if n > 1}
        results: dict[str, object] = {"evidence": self.evidence, "counts": counts}
        results["abandoned"] = bool(contexts and self._pprank.spoiled)
        results["off"] = {each.name: each.off for each in self.checks.contexts if each.off}
        return json.dumps(results) if any(results.values()) else ""

    def describe_faults(self) -> str:
        """Return, in words, what the faults did."""
        return "; ".join(filter(None, map(str, self.faults.contexts)))

    def close(self) -> None:
        """Undo everything, however the test has ended."""
        self.faults.close()
        self.checks.close()
        for recording, _ in self._traced:
            recording.close()

    def _found(self) -> int:
        contexts = (*self.checks.contexts, *self.faults.contexts)
        return sum(sum(each.counts.values()) for each in contexts)


def _traced(pprank: Pprank) -> list[tuple[Recording, EventTrace]]:
    """Return what records the test; empty if there is no trace."""
    recorder = trace.recorder()
    if recorder is None:
        return []
    from pytest_pprank.trace.record.recording import EventTrace, Recording

    recording = Recording(pprank, recorder)
    return [(recording, EventTrace(recording, sglang=trace.of_sglang()))]


def _disturbances(
    order: RunTest, pprank: Pprank, send: Callable[[Finding], None]
) -> Iterator[Disturbance]:
    schedule = order.perturb
    if schedule is not None:
        test, asked = test_name(order.key), schedule.by_name
        for name in schedule.names:
            yield Disturbance(name, schedule.seed, test, pprank, send, asked=asked)


@contextmanager
def running(
    order: RunTest, pprank: Pprank, send: Callable[[Finding], None]
) -> Iterator[TestLifecycles]:
    """Begin a test's checks; end its checks and faults after the block."""
    global _current
    _current = lifecycles = TestLifecycles(order, pprank, send)
    try:
        lifecycles.begin()
        yield lifecycles
        lifecycles.end()
    finally:
        lifecycles.close()
        _current = None


def engine_created(engine: Engine) -> None:
    """Notify checks and faults that an engine was made, whose loops were not entered yet."""
    if _current is not None:
        _current.loop(engine)


def begin_call() -> None:
    """Begin the faults: the test's call begins."""
    if _current is not None:
        _current.faults.begin()


def at_quiescence(scheduler: Scheduler, pprank: Pprank) -> None:
    """Notify checks and faults that a Scheduler's event loops have ended, with all work done.

    If that leads to a finding, the test counts as failed on this rank.
    """
    if _current is None or pprank.failed:
        return

    def look() -> Quiescent:
        from pytest_pprank.sglang.events.quiescent import quiescent

        return quiescent(scheduler)

    if _current.quiescent(look):
        pprank.failed = True
