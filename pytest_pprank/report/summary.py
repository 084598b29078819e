"""Writes what a run has found as Markdown, such as the summary of a job of GitHub Actions."""

from __future__ import annotations

import html
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.report.verdict import PROPERTY, RANKS, TOPOLOGY
from pytest_pprank.words import plural_ranks

_MOST_SHOWN = 20
_MOST_CHARACTERS = 6_000
"""Limits on failures and on the text of each: GitHub takes 1 MiB for all steps of a job."""
_FIRST = ("failed", "error")
"""What the counts begin with, as pytest's last line does."""


class MarkdownSummary:
    """Collects the failures of all tests, and appends the summary to a file at the end of the run.

    `head` returns lines about the run as a whole, `more` those about worker groups and checks.
    Raises UsageError if the file cannot be written.
    """

    def __init__(
        self, file: Path, head: Callable[[], list[str]], more: Callable[[], list[str]]
    ) -> None:
        self._file, self._head, self._more = file, head, more
        self._counts: Counter[str] = Counter()
        self._failed: list[pytest.TestReport | pytest.CollectReport] = []
        self._began = time.monotonic()
        self._interrupted = ""
        self._append("")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that could not be collected."""
        if report.failed:
            self._counts["error"] += 1
            self._failed.append(report)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a report as the terminal does, and keep it if it is of a failure."""
        category = self._category(report)
        if category:
            self._counts[category] += 1
        if category in _FIRST:
            self._failed.append(report)

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep the hook by which pytest and plugins name what has happened."""
        self._config = config

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note that the run did not come to its end."""
        self._interrupted = " ".join(map(str, excinfo.value.args)) or excinfo.typename

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Append the summary."""
        self._append("\n".join(self._lines()) + "\n")

    def _category(self, report: pytest.TestReport) -> str:
        status = self._config.hook.pytest_report_teststatus(report=report, config=self._config)
        return str(status[0])

    def _append(self, text: str) -> None:
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UsageError(
                f"--pprank-summary: {str(self._file)!r} is not a file that can be written to "
                f"({error.strerror})"
            ) from None

    def _lines(self) -> Iterator[str]:
        counts = sorted(self._counts.items(), key=lambda it: it[0] not in _FIRST)
        said = ", ".join(f"{count} {word}" for word, count in counts) or "no tests ran"
        cut = f" (interrupted: {self._interrupted})" if self._interrupted else ""
        yield f"### {said}{cut}"
        yield ""
        seconds = time.monotonic() - self._began
        yield from (f"- {line}" for line in [*self._head(), f"{seconds:.0f} s", *self._more()])
        yield ""
        shown = self._failed[:_MOST_SHOWN]
        if shown:
            yield from ("| verdict | test | topology | what |", "| --- | --- | --- | --- |")
            yield from map(_row, shown)
            yield ""
        for report in shown:
            yield from _details(report)
        if left := len(self._failed) - len(shown):
            yield f"... and {left} more failures.\n"


def _properties(report: pytest.TestReport | pytest.CollectReport) -> dict[str, object]:
    return dict(getattr(report, "user_properties", ()))


def _row(report: pytest.TestReport | pytest.CollectReport) -> str:
    own = _properties(report)
    verdict = str(own.get(PROPERTY, report.outcome))
    what = _first_line(report).removeprefix(f"{verdict}: ")
    if RANKS in own:
        verdict += f" ({plural_ranks(map(int, str(own[RANKS]).split(',')))})"
    test = f"<code>{_escaped(report.nodeid)}</code>"
    cells = (verdict, test, str(own.get(TOPOLOGY, "")), _escaped(what))
    return f"| {' | '.join(map(_cell, cells))} |"


def _details(report: pytest.TestReport | pytest.CollectReport) -> Iterator[str]:
    text = report.longreprtext.strip("\n")
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    # a line of HTML, in which Markdown's characters mean nothing
    yield f"<details><summary>{html.escape(report.nodeid)}</summary>"
    yield from ("", f"{fence}text", text, fence, "", "</details>", "")


def _first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message) if crash is not None else report.longreprtext
    return text.strip().partition("\n")[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _escaped(text: str) -> str:
    """Return text that neither HTML nor Markdown reads as its own."""
    return re.sub(r"([\\`*_\[\]~])", r"\\\1", html.escape(text, quote=False))
