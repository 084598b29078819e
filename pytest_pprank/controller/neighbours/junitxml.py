"""pytest's junit.xml has the output of a test without titles: there it says which rank has said it.

Works in the process that writes the file, which under pytest-xdist runs no test itself.
"""

from __future__ import annotations

import re
from collections.abc import Generator

import pytest

_OF_RANKS = re.compile(r"^Captured (?:stdout|stderr|log) (\w+) \((ranks? [\d,]+)\)$")


class JunitOutput:
    """Puts the phase and the ranks in front of captured output while a report is logged."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(
        self, report: pytest.TestReport
    ) -> Generator[None, object, object]:
        """Change the report's sections for the time of the hook; others show its titles."""
        before = report.sections
        report.sections = [(title, _named(title, text)) for title, text in before]
        try:
            return (yield)
        finally:
            report.sections = before


def _named(title: str, text: str) -> str:
    of_ranks = _OF_RANKS.match(title)
    end = "" if text.endswith("\n") else "\n"
    return f"[{of_ranks[1]}, {of_ranks[2]}]\n{text}{end}" if of_ranks else text


def register(config: pytest.Config) -> None:
    """Begin this in the process that writes junit.xml."""
    config.pluginmanager.register(JunitOutput(), "pprank-junit-output")
