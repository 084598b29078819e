"""What a report says of the known bugs of SGLang that its test shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from pytest_pprank._pytest_compat import passed_unexpectedly, set_unexpected_pass_reason
from pytest_pprank.known.bugs import KnownBug
from pytest_pprank.report.verdict import PROPERTY

COMMAND = "python -m pytest_pprank known-bugs"


def mark_mended(report: pytest.TestReport, bugs: tuple[KnownBug, ...]) -> None:
    """Say, in the report of a rank on which a known bug did not show, what there is to do."""
    if not bugs or not passed_unexpectedly(report):
        return
    from pytest_pprank.known.marks import mended

    for bug in bugs:
        if str(report.longrepr).endswith(bug.summary):
            set_unexpected_pass_reason(report, mended(bug))


def expect_verdicts(
    item: pytest.Item, reports: Sequence[pytest.TestReport], bugs: tuple[KnownBug, ...]
) -> None:
    """Let a test that hangs, or whose rank dies, by a known bug fail as expected."""
    if item.config.getoption("runxfail"):
        return
    for bug in bugs:
        found = (PROPERTY, bug.verdict)
        for report in reports:
            by_it = report.failed and found in report.user_properties
            if by_it and not bug.red and bug.says in str(report.longrepr):
                report.outcome, report.wasxfail = "skipped", bug.summary
                report.user_properties.remove(found)


def known_lines(report: pytest.TestReport, bugs: tuple[KnownBug, ...]) -> Iterator[str]:
    """Yield a line for each known bug that this failure looks like."""
    text = str(report.longrepr) if report.failed and bugs else ""
    yield from (f"{bug.summary} ({COMMAND})" for bug in bugs if bug.red and bug.says in text)
