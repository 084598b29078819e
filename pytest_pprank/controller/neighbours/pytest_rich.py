"""pytest-rich: it shows pytest's tracebacks in its own way, without the sections after them."""

from __future__ import annotations

from typing import Any

import pytest


class Neighbour:
    """Shows these sections, and the ranks in the line of the summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._reporter: Any = config.pluginmanager.get_plugin("rich-terminal-reporter")
        if self._reporter is not None:
            self._show = self._reporter._print_captured_sections
            self._reporter._print_captured_sections = self._print_sections
            self._summary = self._reporter.print_summary
            self._reporter.print_summary = self._print_summary

    def _print_sections(self, report: pytest.TestReport) -> None:
        from rich.rule import Rule
        from rich.text import Text

        if isinstance(report, pytest.TestReport):
            for name, content, *_ in getattr(report.longrepr, "sections", ()):
                self._reporter.console.print(Rule(name, style="yellow"))
                self._reporter.console.print(Text(content))
        self._show(report)

    def _print_summary(self, error_messages: dict[str, list[str]]) -> None:
        for report in self._reporter.categorized_reports["failed"]:
            crash = getattr(report.longrepr, "reprcrash", None)
            if crash is not None:
                error_messages[report.nodeid] = [crash.message]
        self._summary(error_messages)
