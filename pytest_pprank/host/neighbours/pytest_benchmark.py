"""pytest-benchmark: all ranks run the same rounds; the controller's table has the slowest rank.

How often a function runs depends on how long it took. So the ranks agree on the longest time of
each measurement that decides the number of rounds. What is measured afterwards is each rank's own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator
from typing import Any

import pytest

from pytest_pprank.rank.context import current_rank

ATTRIBUTE = "pprank_benchmark"
"""Attribute of a report: what was measured, by rank.

Read by controller.neighbours.pytest_benchmark.
"""


_WORKER = "PYTEST_XDIST_WORKER"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hide the environment variable of xdist's workers from pytest-benchmark, unless xdist is used.

    With it, pytest-benchmark up to 5.2 warns, which is an error with filterwarnings = error, and
    the rank does not start.
    """
    from pytest_benchmark import plugin

    workerinput: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
    if workerinput["workerid"].startswith("pp"):
        plugin.BenchmarkSession = _without_worker(plugin.BenchmarkSession)


def _without_worker(start: Callable[[pytest.Config], object]) -> Callable[[pytest.Config], object]:
    def start_hidden(config: pytest.Config) -> object:
        worker = os.environ.pop(_WORKER, None)
        try:
            return start(config)
        finally:
            if worker is not None:
                os.environ[_WORKER] = worker

    return start_hidden


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Enable pytest-benchmark, which disables itself in a worker, unless xdist itself is used."""
    config = session.config
    benchmarks: Any = getattr(config, "_benchmarksession", None)
    workerinput: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
    if benchmarks is None or not workerinput["workerid"].startswith("pp"):
        return
    option = config.option
    benchmarks.disabled = option.benchmark_disable and not option.benchmark_enable
    benchmarks.xdist_warning = False
    _agree()


def _agree() -> None:
    from pytest_benchmark.fixture import BenchmarkFixture

    kind: Any = BenchmarkFixture
    for name in ("_calibrate_timer", "_run_until_precise"):
        if hasattr(kind, name):
            setattr(kind, name, _with_agreed_runner(getattr(kind, name)))
    own_precision = kind._get_precision
    kind._get_precision = lambda self, timer: _longest(own_precision(self, timer))


def _with_agreed_runner(method: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(method)
    def agreed(self: object, runner: Callable[..., float], *args: object) -> object:
        return method(self, lambda *given: _longest(runner(*given)), *args)

    return agreed


def _longest(seconds: float) -> float:
    return float(max(current_rank().gather(float(seconds))))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the measurements to the report of the call."""
    report = yield
    fixture = getattr(item, "funcargs", {}).get("benchmark")
    stats = getattr(fixture, "stats", None)
    if call.when == "call" and stats:
        measured = stats.as_dict(include_data=False, stats=False)
        measured |= {"iterations": stats.iterations, "data": list(stats.stats.data)}
        setattr(report, ATTRIBUTE, {str(current_rank().rank): measured})
    return report
