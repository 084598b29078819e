"""pytest plugin of the benchmarks (`-p bench_events`): records events with their times.

A process that does not report (a rank of pytest-pprank) records only what its tests `note`.
Durations of tests are kept in memory until the end, so that writing them does not count.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_pprank.controller.group import WorkerGroup
    from pytest_pprank.controller.start import StartClock

OUT = "BENCH_EVENTS"
"""Environment variable: the file of JSON lines to which every process of the run appends."""

DETAILS = "BENCH_DETAILS"
"""Environment variable: if set, write each report at once, with its text."""

_durations: list[dict[str, Any]] = []
_begun = 0.0


def note(what: str, **facts: object) -> None:
    """Append an event; tests call it, too."""
    line = json.dumps({"what": what, "time": time.time(), "rank": os.environ.get("RANK"), **facts})
    descriptor = os.open(os.environ[OUT], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode() + b"\n")
    os.close(descriptor)


def _reports() -> bool:
    try:
        from pytest_pprank.rank.context import is_rank
    except ImportError:
        return True
    return not is_rank()


def pytest_configure() -> None:
    """Record the times at which worker groups start."""
    try:
        from pytest_pprank.controller.group import WorkerGroup
    except ImportError:
        return
    start = WorkerGroup.start

    def timed_start(self: WorkerGroup, clock: StartClock | None = None) -> None:
        before = time.perf_counter()
        start(self, clock)
        note("group started", seconds=time.perf_counter() - before)

    WorkerGroup.start = timed_start  # type: ignore[method-assign]


def pytest_runtest_logstart() -> None:
    """Record the start of a test."""
    global _begun
    _begun = time.perf_counter()


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Record the end of a test."""
    _durations.append({"test": nodeid, "seconds": time.perf_counter() - _begun})


def pytest_runtest_logreport(report: Any) -> None:
    """Record a report."""
    if DETAILS in os.environ and _reports():
        text = report.longreprtext if report.longrepr is not None else ""
        test = report.nodeid.rpartition("::")[2].partition("[")[0]
        note("report", test=test, when=report.when, outcome=report.outcome, text=text)


def pytest_unconfigure() -> None:
    """Write the durations."""
    if _durations and _reports():
        note("durations", tests=_durations)
