"""Runs the perturbations of a test on this rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from pytest_pprank.errors import SeamMissing
from pytest_pprank.faults import row_of
from pytest_pprank.faults.base import Disturbance, Perturbation
from pytest_pprank.protocol.items import test_name
from pytest_pprank.protocol.schedule import Schedule

if TYPE_CHECKING:
    from pytest_pprank.protocol.messages import ItemKey
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.driver.engine import Engine

_running: PerturbationRun | None = None


class PerturbationRun:
    """The perturbations of one test."""

    def __init__(self, schedule: Schedule, key: ItemKey, pprank: Pprank) -> None:
        test = test_name(key)
        self._asked = schedule.by_name
        self._off: dict[str, str] = {}
        self._all: list[Perturbation] = [
            resolve_name(row_of(name).place)(Disturbance(name, schedule.seed, test, pprank))
            for name in schedule.names
        ]

    def loop(self, engine: Engine) -> None:
        """An engine was made."""
        for perturbation in self._all:
            self._try(perturbation, lambda it: it.loop(engine))

    def begin(self) -> None:
        """The test's call begins."""
        for perturbation in self._all:
            self._try(perturbation, lambda it: it.begin())

    def _try(self, perturbation: Perturbation, act: Callable[[Perturbation], None]) -> None:
        """Leave out what needs something that SGLang lacks, unless it was asked for by name."""
        try:
            act(perturbation)
        except SeamMissing as lacking:
            if self._asked:
                raise
            self._off[perturbation.name] = f"{perturbation.name}: off, {lacking}"

    def close(self) -> None:
        """The test is over."""
        for perturbation in reversed(self._all):
            perturbation.disturbance.close()

    def __str__(self) -> str:
        did = (str(each.disturbance) for each in self._all)
        return "; ".join([*filter(None, did), *self._off.values()])


@contextmanager
def perturbing(
    schedule: Schedule | None, key: ItemKey, pprank: Pprank
) -> Iterator[PerturbationRun | None]:
    """Run a test's perturbations inside the block; None where there are none."""
    global _running
    if schedule is None:
        yield None
        return
    _running = PerturbationRun(schedule, key, pprank)
    try:
        yield _running
    finally:
        _running.close()
        _running = None


def perturb_loop(engine: Engine) -> None:
    """Say that an engine was made, and its loops have not been entered."""
    if _running is not None:
        _running.loop(engine)


def perturb_call() -> None:
    """Say that the test's call begins."""
    if _running is not None:
        _running.begin()
