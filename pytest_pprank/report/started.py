"""Shows the start of a worker group in the report of its first test, and in --durations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.report.text import add_line
from pytest_pprank.words import plural_ranks

if TYPE_CHECKING:
    from pytest_pprank.protocol.messages import Preloaded

PROPERTY = "pprank_start"
_ATTRIBUTE = "pprank_start_seconds"
"""Attribute of the report of setup; it is kept on the way from a worker of pytest-xdist."""
_OURS = "pytest_pprank"


def started_text(
    name: str, ranks: Collection[int], parts: Mapping[str, float], preloaded: Preloaded
) -> str:
    """Return what the time of a group's start was spent on; `parts` are in seconds."""
    done = {
        "lease": "waiting for GPUs or cores",
        "imports": f"waiting for imports ({_imports(preloaded)})",
        "ranks": f"{plural_ranks(ranks)} {_METHODS[preloaded.start_method]}",
        "collection": "tests collected there",
    }
    shown = [f"{seconds:.1f} s {done[part]}" for part, seconds in parts.items() if seconds >= 0.05]
    return f"worker group {name} started in {sum(parts.values()):.1f} s: {', '.join(shown)}"


_METHODS = {"forkserver": "forked", "spawn": "spawned"}


def _imports(preloaded: Preloaded) -> str:
    packages = [_package(entry) for entry in preloaded.modules]
    shown = ", ".join(dict.fromkeys(name for name in packages if name != _OURS))
    return shown or "none that ranks share"


def _package(entry: str) -> str:
    return "sglang" if entry.startswith(f"{_OURS}.sglang") else entry.partition(".")[0]


def add_start(reports: list[pytest.TestReport], text: str, seconds: float, *, shown: bool) -> None:
    """Add a group's start to the reports of its first test; `shown`: also in a failure."""
    for report in reports:
        if shown:
            add_line(report, text)
        report.user_properties.append((PROPERTY, text))
        if report.when == "setup":
            setattr(report, _ATTRIBUTE, seconds)


def add_durations(reporter: pytest.TerminalReporter) -> None:
    """Give --durations a row for each start in a report of this run."""
    starts = [
        each for some in reporter.stats.values() for each in some if hasattr(each, _ATTRIBUTE)
    ]
    # the category of setups and teardowns, which is not counted in the summary
    reporter.stats.setdefault("", []).extend(map(_row, starts))


def _row(report: pytest.TestReport) -> pytest.TestReport:
    return pytest.TestReport(
        report.nodeid,
        report.location,
        {},
        "passed",
        None,
        when="start",  # type: ignore[arg-type]
        duration=getattr(report, _ATTRIBUTE),
    )
