"""A failure without an exception's traceback, shown like pytest's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank._pytest_compat import (
    ExceptionRepr,
    ReprFileLocation,
    add_to_section,
    single_entry_traceback,
)

if TYPE_CHECKING:
    import pytest
    from _pytest._io import TerminalWriter

SECTION = "pprank"
"""The section of a report with what this plugin says besides verdict and findings."""


def add_line(report: pytest.TestReport, text: str) -> None:
    """Add a line to the section `SECTION` of a report; in a failure there is one, at its end."""
    if not (report.failed and add_to_section(report.longrepr, SECTION, text)):
        report.sections.append((SECTION, text))


class Crash(ReprFileLocation):
    """pytest's reprcrash, which summaries and annotations read, with the location of the test."""

    def __str__(self) -> str:
        first = self.message.partition("\n")[0]
        return f"{self.path}:{self.lineno}: {first}" if self.path else first


class PlainFailure(ExceptionRepr):
    """Verdict, text and titled sections; pytest prints it like any other failure.

    For plugins that look into failures it has the same parts as pytest's: a traceback of one entry.
    """

    def __init__(self, verdict: str, text: str) -> None:
        self._text = f"{verdict}: {text}" if verdict else text
        self._lines = [f"E   {line}" for line in self._text.splitlines()]
        super().__init__(single_entry_traceback(self._lines, "", 0, ""), Crash("", 0, self._text))

    def locate(self, path: str, lineno: int) -> None:
        """Set the location of the test; `lineno` counts from 1."""
        crash = self.reprcrash
        self.reprcrash = Crash(path, lineno, crash.message if crash else self._text)
        first = self._text.partition("\n")[0]
        self.reprtraceback = single_entry_traceback(self._lines, path, lineno, first)

    def toterminal(self, tw: TerminalWriter) -> None:
        """Write verdict, text and sections to pytest's terminal."""
        for line in self._lines:
            tw.line(line, bold=True, red=True)
        for name, content, separator in self.sections:
            tw.sep(separator, name)
            for line in content.splitlines():
                tw.line(line)

    def __str__(self) -> str:
        blocks = [f"--- {name} ---\n{content}" for name, content, _ in self.sections]
        return "\n".join([self._text, *blocks])
