"""The report of one phase of one test on one rank, and how the phase ended."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from pytest_pprank._pytest_compat import passed_unexpectedly
from pytest_pprank.report.consequences import is_lost_peer, is_released

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
XFAILED, XPASSED, XPASSED_STRICT = "xfailed", "xpassed", "xpassed (strict)"


def is_red(report: pytest.TestReport) -> bool:
    """Return whether a phase has failed, also as it was expected to."""
    return report.failed or RankReport(0, report).kind == XFAILED


@dataclass(frozen=True)
class RankReport:
    """A rank's report. `kind` distinguishes endings for which pytest has the same outcome."""

    rank: int
    report: pytest.TestReport

    @property
    def kind(self) -> str:
        """How the phase ended on this rank."""
        report = self.report
        if report.failed:
            return XPASSED_STRICT if passed_unexpectedly(report) else FAILED
        if hasattr(report, "wasxfail"):
            return XFAILED if report.skipped else XPASSED
        return str(report.outcome)

    @property
    def subtest(self) -> str:
        """What distinguishes subtests of one test; empty for the report of a phase itself."""
        context = getattr(self.report, "context", None)
        return "" if context is None else str(context)

    @property
    def message(self) -> str:
        """The message of the exception; empty if pytest kept none."""
        crash = getattr(self.report.longrepr, "reprcrash", None)
        return str(crash.message) if crash is not None else ""

    @property
    def is_consequence(self) -> bool:
        """Whether this rank failed only because of what happened to a peer.

        If no peer has another failure, such a failure is shown nevertheless.
        """
        return is_released(self.message) or is_lost_peer(self.message)

    @property
    def reason(self) -> str:
        """The reason of a skip or xfail."""
        longrepr = self.report.longrepr
        if hasattr(self.report, "wasxfail"):
            return str(self.report.wasxfail)
        return str(longrepr[2]) if isinstance(longrepr, tuple) else ""

    def same_failure_as(self, other: RankReport) -> bool:
        """Return whether two failures are equal except for the rank in their text."""
        if self.place != other.place:
            return False
        return self._text == other._text or self._anonymous == other._anonymous

    @property
    def place(self) -> str:
        """File and line of the failure; empty if pytest kept none."""
        crash = getattr(self.report.longrepr, "reprcrash", None)
        return f"{crash.path}:{crash.lineno}" if crash is not None else ""

    @property
    def _text(self) -> str:
        return re.sub(r"0x[0-9a-f]+", "0x", self.message or self.report.longreprtext)

    @property
    def _anonymous(self) -> str:
        return re.sub(rf"\b(ranks?|stages?|pp|PP)(\s?){self.rank}\b", r"\1\2K", self._text)
