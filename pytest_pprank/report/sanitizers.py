"""A finding of a sanitizer fails its test, under a heading of its own."""

from __future__ import annotations

import pytest

from pytest_pprank.planning import planned
from pytest_pprank.report.allowances import Allowance, Allowances
from pytest_pprank.report.findings import SeenFinding
from pytest_pprank.report.outcome import TestOutcome
from pytest_pprank.report.perturbed import perturbed_lines
from pytest_pprank.report.rank_report import FAILED, XFAILED, XPASSED, XPASSED_STRICT, RankReport
from pytest_pprank.report.text import PlainFailure
from pytest_pprank.report.verdict import note_verdict

HEADING = "sanitizers"
KIND = "sanitizer"
"""The verdict (`pprank_verdict`) on a test that nothing but a sanitizer has failed."""


class SanitizerReport:
    """Puts findings into the merged reports of a test."""

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances

    def unused(self) -> list[Allowance]:
        """Return the allowances that were of no use in this run."""
        return self._allowances.unused()

    def add_to(
        self, item: pytest.Item, outcome: TestOutcome, reports: list[pytest.TestReport]
    ) -> None:
        """Change `reports`, those of the test's phases, for what was found and is not allowed."""
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
        text = "\n".join(line for seen in found for line in seen.lines())
        if kind == FAILED:
            _add_section(report, text)
        elif kind in (XPASSED, XPASSED_STRICT) and _expects(item, found):
            _expected(item, report, _failure(item, found, text, outcome))
        elif kind != XFAILED:
            report.outcome, report.longrepr = "failed", _failure(item, found, text, outcome)
            note_verdict(reports[reports.index(report) :], KIND)


def _report_for(reports: list[pytest.TestReport]) -> pytest.TestReport:
    """The report of the phase that failed first, else that of the call, else the last one."""
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
    """Whether findings can be the failure that is expected: they are none of the test's `raises`,
    unless all are of the sanitizer that shows a known bug, and one has its words.
    """
    mark = item.get_closest_marker("xfail")
    if mark is None or mark.kwargs.get("raises") is None:
        return mark is not None
    text = "\n".join(line for seen in found for line in seen.lines())
    names = {seen.finding.sanitizer for seen in found}
    return any(names == {bug.sanitizer} and bug.says in text for bug in planned(item).known_bugs)


def _expected(item: pytest.Item, report: pytest.TestReport, failure: PlainFailure) -> None:
    """The test was expected to fail, and so it does: by a sanitizer."""
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
    lines = list(perturbed_lines(planned(item), item.nodeid, outcome.perturbed))
    if lines:
        failure.addsection("pprank", "\n".join(lines))
    return failure
