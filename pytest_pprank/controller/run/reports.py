"""What the ranks have reported of one test, and so the phase that each of them is in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pytest_pprank.protocol.messages import PLAIN_FIELDS, Report

_PHASES = ("setup", "call", "teardown")


class PhaseReports:
    """The reports of each rank, in order, as pytest serialised them (`by_rank`)."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self.by_rank: dict[int, list[dict[str, Any]]] = {rank: [] for rank in ranks}

    def keep(self, rank: int, serialised: Report) -> str:
        """Keep a report; returns the phase that ends with it, or nothing."""
        if serialised is None:
            return ""
        if isinstance(serialised, str):
            report = json.loads(serialised)
        else:
            report = dict(zip(PLAIN_FIELDS, serialised, strict=True))
        self.by_rank[rank].append(report)
        # after that of a subtest the phase goes on
        return "" if "context" in report else str(report["when"])

    def phase(self, rank: int) -> str:
        """Return the phase a rank is in, which has no report yet."""
        reports = self.by_rank[rank]
        ended = {report["when"] for report in reports if "context" not in report}
        broken = any(report["outcome"] != "passed" for report in reports[:1])
        return "teardown" if broken else _PHASES[min(len(ended), 2)]

    def failed(self, rank: int) -> bool:
        """Whether the last report of a rank says so, or would if the failure were not expected."""
        last = self.by_rank[rank][-1:]
        return any("wasxfail" in report or report["outcome"] == "failed" for report in last)

    def only_set_up(self, rank: int) -> bool:
        """Whether the last report of a rank is that of its setup."""
        return any(report["when"] == "setup" for report in self.by_rank[rank][-1:])

    def last(self, rank: int) -> str:
        """Say how far a rank that is through with a phase has come."""
        reports = self.by_rank[rank]
        if not reports:  # a plugin on the rank runs tests its own way
            return "finished the test"
        return f"{reports[-1]['outcome']} in {reports[-1]['when']}"
