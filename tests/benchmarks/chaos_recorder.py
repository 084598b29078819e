"""pytest plugin of the chaos run: writes every report of the controller down, as it comes.

Loaded with `-p chaos_recorder`. Lines of JSON, so that a run that is killed still leaves what it
had reported.
"""

from __future__ import annotations

import json
import os
from typing import Any

_OUT = "CHAOS_REPORTS"
_KEPT = 100_000  # characters at either end of a long report


def _head(report: Any) -> str:
    """The message that summaries and annotations show."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message)[:_KEPT] if crash is not None else ""


def pytest_runtest_logreport(report: Any) -> None:
    """Append a report. Ranks load this plugin too, and have no business here."""
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
