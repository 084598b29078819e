"""What a report says about the known bugs of SGLang that its test shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from pytest_pprank._pytest_compat import passed_unexpectedly, set_unexpected_pass_reason
from pytest_pprank.known.bugs import KnownBug
from pytest_pprank.report.verdict import PROPERTY

COMMAND = "python -m pytest_pprank known-bugs"


def mark_mended(report: pytest.TestReport, bugs: tuple[KnownBug, ...]) -> None:
    """If a known bug did not show on a rank, say in its report what to do."""
    if not bugs or not passed_unexpectedly(report):
        return
    from pytest_pprank.known.marks import mended

    for bug in bugs:
        if str(report.longrepr).endswith(bug.summary):
            set_unexpected_pass_reason(report, mended(bug))


def expect_verdicts(
    item: pytest.Item, reports: Sequence[pytest.TestReport], bugs: tuple[KnownBug, ...]
) -> None:
    """Turn a hang or a rank's death because of a known bug into an expected failure."""
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
    """Yield a line for each known bug that this failure may be."""
    text = str(report.longrepr) if report.failed and bugs else ""
    yield from (f"{bug.summary} ({COMMAND})" for bug in bugs if bug.red and bug.says in text)
