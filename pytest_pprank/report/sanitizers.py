"""Makes a finding of a sanitizer fail its test, in a section of its own."""

from __future__ import annotations

import pytest

from pytest_pprank.planning import planned
from pytest_pprank.report.allowances import Allowance, Allowances
from pytest_pprank.report.findings import SeenFinding, in_words
from pytest_pprank.report.outcome import TestOutcome
from pytest_pprank.report.perturbed import perturbed_lines
from pytest_pprank.report.rank_report import FAILED, XFAILED, XPASSED, XPASSED_STRICT, RankReport
from pytest_pprank.report.text import PlainFailure
from pytest_pprank.report.verdict import note_verdict

HEADING = "sanitizers"
KIND = "sanitizer"
"""The verdict (`pprank_verdict`) on a test that only a sanitizer has failed."""


class SanitizerReport:
    """Adds findings to the merged reports of a test."""

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances

    def unused(self) -> list[Allowance]:
        """Return the user's allowances that matched nothing in this run."""
        return self._allowances.unused()

    def add_to(
        self, item: pytest.Item, outcome: TestOutcome, reports: list[pytest.TestReport]
    ) -> None:
        """Change the reports of a test's phases according to findings that are not allowed."""
        findings = outcome.findings
        kinds = {RankReport(0, report).kind for report in reports}
        if FAILED not in kinds and not outcome.troubles:
            findings.compare()
        self._allowances.note_watched(findings.sanitizers)
        found = self._allowances.sift(list(findings.all()), item.nodeid)
        if not found or not reports:
            return
        report = _report_for(reports)
        kind = RankReport(0, report).kind
        text = in_words(found)
        if kind == FAILED:
            _add_section(report, text)
        elif kind in (XPASSED, XPASSED_STRICT) and _expects(item, found):
            _expected(item, report, _failure(item, found, text, outcome))
        elif kind != XFAILED:
            report.outcome, report.longrepr = "failed", _failure(item, found, text, outcome)
            note_verdict(reports[reports.index(report) :], KIND)


def _report_for(reports: list[pytest.TestReport]) -> pytest.TestReport:
    """Return the report of the first failed phase, else that of the call, else the last one."""
    failed = [report for report in reports if report.failed]
    called = [report for report in reports if report.when == "call"]
    return (failed or called or reports)[0]


def _add_section(report: pytest.TestReport, text: str) -> None:
    longrepr: object = report.longrepr
    if hasattr(longrepr, "addsection"):
        longrepr.addsection(HEADING, text)
    else:
        report.sections.append((HEADING, text))


def _expects(item: pytest.Item, found: list[SeenFinding]) -> bool:
    """Return whether findings can be the failure that the test's xfail mark expects.

    With `raises` they cannot, unless all are from the sanitizer that shows a known bug, and one has
    the text of that bug.
    """
    mark = item.get_closest_marker("xfail")
    if mark is None or mark.kwargs.get("raises") is None:
        return mark is not None
    text = in_words(found)
    names = {seen.finding.sanitizer for seen in found}
    return any(names == {bug.sanitizer} and bug.says in text for bug in planned(item).known_bugs)


def _expected(item: pytest.Item, report: pytest.TestReport, failure: PlainFailure) -> None:
    """Turn the unexpected pass of a test into the expected failure that a sanitizer has found."""
    mark = item.get_closest_marker("xfail")
    report.outcome, report.longrepr = "skipped", failure
    report.wasxfail = str(mark.kwargs.get("reason", "")) if mark is not None else ""


def _failure(
    item: pytest.Item, found: list[SeenFinding], text: str, outcome: TestOutcome
) -> PlainFailure:
    first = found[0].lines()[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    failure = PlainFailure(KIND, first + more)
    failure.locate(str(item.path), (item.location[1] or 0) + 1)
    failure.addsection(HEADING, text)
    lines = list(perturbed_lines(planned(item), outcome.perturbed))
    if lines:
        failure.addsection("pprank", "\n".join(lines))
    return failure
