"""pytest plugin of the chaos run: writes each report of the controller as it arrives.

Loaded with `-p chaos_recorder`. It writes lines of JSON, so that a killed run leaves the reports so
far.
"""

from __future__ import annotations

import json
import os
from typing import Any

_OUT = "CHAOS_REPORTS"
_KEPT = 100_000  # characters kept at either end of a long report


def _head(report: Any) -> str:
    """Return the message that summaries and annotations show."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message)[:_KEPT] if crash is not None else ""


def pytest_runtest_logreport(report: Any) -> None:
    """Append a report. Ranks load this plugin, too, but must not write."""
    if "RANK" in os.environ:
        return
    text = report.longreprtext if report.longrepr is not None else ""
    line = {
        "name": report.nodeid.rpartition("::")[2].partition("[")[0],
        "when": report.when,
        "outcome": report.outcome,
        "wasxfail": hasattr(report, "wasxfail"),
        "head": _head(report),
        "text": text if len(text) <= 2 * _KEPT else f"{text[:_KEPT]}\n[...]\n{text[-_KEPT:]}",
        "size": len(text) + sum(len(content) for _, content in report.sections),
        "seconds": report.duration,
    }
    with open(os.environ[_OUT], "a") as file:
        print(json.dumps(line), file=file)
