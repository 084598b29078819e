"""The reports of one test from its ranks, and the phases in which the ranks therefore are."""

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
        """Keep a report; return the phase that ends with it, or an empty string."""
        if serialised is None:
            return ""
        if isinstance(serialised, str):
            report = json.loads(serialised)
        else:
            report = dict(zip(PLAIN_FIELDS, serialised, strict=True))
        self.by_rank[rank].append(report)
        # the report of a subtest does not end the phase
        return "" if "context" in report else str(report["when"])

    def phase(self, rank: int) -> str:
        """Return the phase a rank is in, for which it has sent no report yet."""
        reports = self.by_rank[rank]
        ended = {report["when"] for report in reports if "context" not in report}
        broken = any(report["outcome"] != "passed" for report in reports[:1])
        return "teardown" if broken else _PHASES[min(len(ended), 2)]

    def failed(self, rank: int) -> bool:
        """Return whether the last report of a rank is a failure, expected (xfail) or not."""
        last = self.by_rank[rank][-1:]
        return any("wasxfail" in report or report["outcome"] == "failed" for report in last)

    def only_set_up(self, rank: int) -> bool:
        """Return whether the last report of a rank is that of its setup."""
        return any(report["when"] == "setup" for report in self.by_rank[rank][-1:])

    def last(self, rank: int) -> str:
        """Return how far a rank that has finished a phase has come, in words."""
        reports = self.by_rank[rank]
        if not reports:  # a plugin on the rank runs tests its own way
            return "finished the test"
        return f"{reports[-1]['outcome']} in {reports[-1]['when']}"
