"""The pytest plugin in a measured run: orders the tests and records how each one ends.

It is loaded with ``-p``; the environment variable `FOLDER` says where to write. On a rank, and in a
run without that variable, it does nothing. It writes one JSON line per event, so that a killed run
leaves its results so far:

    {"event": "collected", "tests": [{"id": ..., "topology": ..., "doc": ...}, ...]}
    {"event": "phase", "id": ..., "phase": ..., "outcome": ..., "seconds": ..., "xfail": ...,
     "verdict": ..., "seen_by": ..., "message": ..., "text": ...}
    {"event": "finished", "id": ...}
    {"event": "collect error" or "internal error", "text": ...}
    {"event": "end", "status": pytest's exit code}
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_pprank.bench.unranked import apply_for_unranked
from pytest_pprank.planning import REVERTED_HERE, plan_of
from pytest_pprank.rank.context import is_rank
from pytest_pprank.report.verdict import PROPERTY

FOLDER = "PPRANK_REGRESSIONS_FOLDER"
"""The environment variable with the folder of this run; it also marks the run's processes."""
EVENTS = "events.jsonl"
ORDER = "order.json"
"""Read if it exists: ``{"first": [test ids], "skip": [test ids]}``."""
_LIKELIEST = 6
"""How many tests run before all others; this costs one extra worker group per topology."""
_MAX_TEXT = 100_000
_ASSERTION = re.compile(r"\b(assert_\w+)\(")


def pytest_configure(config: pytest.Config) -> None:
    """Start recording if this is a measured run and not a rank."""
    folder = os.environ.get(FOLDER)
    if folder and not is_rank():
        config.stash[REVERTED_HERE] = True
        config.pluginmanager.register(Recorder(Path(folder)), "pprank-regressions-recorder")


def short_id(nodeid: str) -> str:
    """Return a test's id without folders, which depend on where pytest was started."""
    file, sep, rest = nodeid.partition("::")
    return f"{file.rpartition('/')[2]}{sep}{rest}"


class Recorder:
    """Writes the events of one run into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / EVENTS
        self._order = folder / ORDER

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Iterator[None]:
        """Run tests that are likely to detect the bug first, and deselect useless ones."""
        if not self._order.is_file():
            return (yield)
        order = json.loads(self._order.read_text("utf-8"))
        self._arrange(config, items, order)
        result = yield  # the plugin groups tests by topology here
        # run the likeliest tests before the rest of any topology
        likeliest = set(order["first"][:_LIKELIEST])
        items.sort(key=lambda item: short_id(item.nodeid) not in likeliest)
        return result

    def _arrange(
        self, config: pytest.Config, items: list[pytest.Item], order: dict[str, list[str]]
    ) -> None:
        places = {test: place for place, test in enumerate(order["first"])}
        skipped = [item for item in items if short_id(item.nodeid) in order["skip"]]
        if skipped:
            config.hook.pytest_deselected(items=skipped)
        kept = [item for item in items if item not in skipped]
        items[:] = sorted(kept, key=lambda item: places.get(short_id(item.nodeid), len(places)))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Record which tests will run; apply the reverts for those that are not ranked."""
        apply_for_unranked(session.items, session.config.getoption("--pprank-revert") or ())
        tests = []
        for item in session.items:
            plan = plan_of(item)
            topology = "" if plan is None else str(plan.topology)
            doc = getattr(getattr(item, "obj", None), "__doc__", None) or ""
            tests.append({"id": short_id(item.nodeid), "topology": topology, "doc": doc})
        self._write("collected", tests=tests)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record how a phase of a test ended."""
        extra: dict[str, object] = {}
        if report.failed:
            extra = _failure(report)
        elif hasattr(report, "wasxfail"):
            extra = {"xfail": str(report.wasxfail)}
        self._write(
            "phase",
            id=short_id(report.nodeid),
            phase=report.when,
            outcome=report.outcome,
            seconds=round(report.duration, 3),
            **extra,
        )

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Record that all phases of a test have ended."""
        self._write("finished", id=short_id(nodeid))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a file that cannot be collected."""
        if report.failed:
            self._write("collect error", text=str(report.longrepr)[:_MAX_TEXT])

    def pytest_internalerror(self, excrepr: object) -> None:
        """Record an internal error of pytest."""
        self._write("internal error", text=str(excrepr)[:_MAX_TEXT])

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Record the exit code."""
        self._write("end", status=int(exitstatus))

    def _write(self, event: str, **values: object) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")


def _failure(report: pytest.TestReport) -> dict[str, object]:
    properties = dict(report.user_properties)
    verdict = str(properties.get(PROPERTY, "failed"))
    crash = getattr(report.longrepr, "reprcrash", None)
    message = str(crash.message if crash is not None else report.longrepr)
    text = report.longreprtext
    return {
        "verdict": verdict,
        "seen_by": _seen_by(verdict, message, report.longrepr),
        "message": message[:_MAX_TEXT],
        "text": text[:_MAX_TEXT],
    }


def _seen_by(verdict: str, message: str, longrepr: object) -> str:
    """Return what made the test fail: sanitizer or assertion, else exception or verdict."""
    sanitizer = re.match(r"sanitizer: ([\w-]+)", message)
    if sanitizer:
        return f"sanitizer {sanitizer[1]}"
    if not verdict.endswith("failed"):
        return verdict
    lines = list(_failing_lines(longrepr))
    for line in lines:
        called = _ASSERTION.search(line)
        if called:
            return called[1]
    text = re.sub(r"^\[ranks? [\d,]+\] ", "", message)
    if text.startswith("AssertionError: assert ") or text.startswith("assert "):
        return lines[0] if lines else "assert"
    name = re.match(r"[\w.]+(?=:|$)", text.partition("\n")[0])
    return name[0].rpartition(".")[2] if name else verdict


def _failing_lines(longrepr: object) -> Iterator[str]:
    """Yield the line that pytest marks in each frame that it shows, the innermost first."""
    entries = getattr(getattr(longrepr, "reprtraceback", None), "reprentries", ())
    for entry in reversed(entries):
        for line in getattr(entry, "lines", ()):
            if line.startswith(">"):
                yield line[1:].strip()
