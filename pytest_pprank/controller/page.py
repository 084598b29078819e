"""Collects the parts of the page (``--pprank-report``) while the tests run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.controller.output import Listener
from pytest_pprank.controller.run.state import DIED
from pytest_pprank.controller.warnings import WarningRelay
from pytest_pprank.oplog.file import Ledger, ledger_file, read_ledger
from pytest_pprank.options import options_of
from pytest_pprank.planning import Plan
from pytest_pprank.report.again import again
from pytest_pprank.report.outcome import TestOutcome
from pytest_pprank.report.page.folder import INDEX, OPTION, PARTS
from pytest_pprank.report.page.parts import (
    RunPart,
    TestPart,
    anchor_of,
    packed,
    write_run,
    write_test,
)
from pytest_pprank.report.page.plain import plain
from pytest_pprank.report.page.timeline import Printed, Timeline, timeline_of
from pytest_pprank.report.page.waits import graph_of
from pytest_pprank.report.rank_report import XFAILED, XPASSED, RankReport
from pytest_pprank.report.text import add_line
from pytest_pprank.report.verdict import PROPERTY
from pytest_pprank.report.verdicts import Detail
from pytest_pprank.trace.file import trace_file
from pytest_pprank.trace.read.read import parse, read_raw

if TYPE_CHECKING:
    from pytest_pprank.controller.group import WorkerGroup

FOLDER = "pprank_page"
"""The key in the workerinput of an xdist worker for the folder of the page."""
_SUMMARY = 12
_MOST_PRINTED = 4000
"""How many pieces of output of one test a timeline has at most: the last ones."""


@dataclass
class _Captured:
    """What the ranks of a test have left, and when (monotonic) it was read: traces and ledgers."""

    traces: dict[int, bytes] = field(default_factory=dict)
    ledgers: dict[int, Ledger] = field(default_factory=dict)
    time: float = 0.0


def page_folder(config: pytest.Config) -> Path | None:
    """Return the folder of this run's page; None without ``--pprank-report``."""
    given = options_of(config).report
    worker: dict[str, str] = getattr(config, "workerinput", {})
    if FOLDER in worker:
        return Path(worker[FOLDER])
    return Path(config.invocation_params.dir, given) if given and not worker else None


class PageRecorder:
    """The parts of the page of one process of the run."""

    def __init__(self, config: pytest.Config) -> None:
        folder = page_folder(config)
        self.wanted = folder is not None
        """Whether the run has a page; if not, all methods do nothing."""
        self._config = config
        self._folder = folder or Path()
        self._all = options_of(config).report_tests == "all"
        worker: dict[str, str] = getattr(config, "workerinput", {})
        self._worker = worker.get("workerid", "")
        self._count = 0
        self._attempts: dict[str, int] = {}
        self._group = self._start = ""
        self._began = 0.0
        self._printed: list[Printed] = []
        self._lines: dict[tuple[int, str], Printed] = {}
        self._captured = _Captured()
        self._notes: list[str] = []
        self.red: dict[str, None] = {}
        """Node ids of the tests that have failed."""
        seen = folder is None or (folder / PARTS).is_dir()
        self.lacking = "" if seen else _unseen(self._folder, self._worker)
        """Why this process cannot add to the page that is wanted; empty if it can."""

    @property
    def listener(self) -> Listener | None:
        """The listener to what ranks print; None without a page."""
        return self._keep_printed if self._active else None

    @property
    def _active(self) -> bool:
        return self.wanted and not self.lacking

    def _keep_printed(self, rank: int, stream: str, data: bytes) -> None:
        text = plain(data.decode("utf-8", "replace"))
        last = self._lines.get((rank, stream))
        if last is not None and not last.text.endswith("\n"):
            last.text += text  # of the same line
            return
        self._lines[rank, stream] = Printed(rank, time.monotonic(), stream, text)
        self._printed.append(self._lines[rank, stream])
        if len(self._printed) > 2 * _MOST_PRINTED:
            del self._printed[:_MOST_PRINTED]

    def begin(self) -> None:
        """Begin a test."""
        if self.lacking and not self._count:
            self._count += 1
            WarningRelay(self._config).warn(self.lacking)
        self._began = time.time()
        self._printed.clear()
        self._lines.clear()
        self._captured, self._start = _Captured(), ""

    def group_started(self, name: str, text: str) -> None:
        """Note that a worker group was started for the running test, and how, in words."""
        self._group, self._start = name, text

    def capture(self, group: WorkerGroup) -> None:
        """Keep what the ranks have recorded, before their folder is removed."""
        if not self._active:
            return
        self._captured = _Captured(
            {rank: read_raw(trace_file(group.workdir, rank)) for rank in group.ranks},
            {rank: read_ledger(ledger_file(group.workdir, rank)) for rank in group.ranks},
            time.monotonic(),
        )

    def point_to(self, item: pytest.Item, reports: Sequence[pytest.TestReport]) -> None:
        """Add the address of the test on the page to each failure among its reports."""
        self._attempts[item.nodeid] = self._attempts.get(item.nodeid, 0) + 1
        if not self._active:
            return
        for report in reports:
            if report.failed:
                add_line(report, f"page: {self._shown()}#{self._anchor(item)}")

    def add(
        self,
        item: pytest.Item,
        plan: Plan,
        outcome: TestOutcome,
        reports: Sequence[pytest.TestReport],
    ) -> None:
        """Write the part of a test that has ended."""
        if not self._active:
            return
        told = _told(reports)
        self._write(item, plan, outcome, told, _failure(reports), _sections(reports))

    def interrupted(
        self, item: pytest.Item, plan: Plan, outcome: TestOutcome, where: Sequence[Detail]
    ) -> None:
        """Write the part of a test that was ended by the user."""
        if not self._active:
            return
        self._attempts[item.nodeid] = self._attempts.get(item.nodeid, 0) + 1
        told = ("interrupted", "interrupted")
        self._write(item, plan, outcome, told, "the run was interrupted", list(where))

    def finish(self, tally: str, checks_off: list[str], reverted: list[str]) -> None:
        """Write the part of this process."""
        if self._active:
            part = RunPart(self._worker, tally, checks_off, reverted, self._notes)
            self._save(lambda: write_run(self._folder / PARTS, self._worker or "main", part))

    def _write(
        self,
        item: pytest.Item,
        plan: Plan,
        outcome: TestOutcome,
        told: tuple[str, str],
        failure: str,
        sections: list[tuple[str, str]],
    ) -> None:
        red = told[0] in ("failed", "interrupted")
        if red:
            self.red[item.nodeid] = None
        timeline = self._timeline(plan, outcome) if red or self._all else None
        part = TestPart(
            nodeid=plain(item.nodeid),
            anchor=self._anchor(item),
            topology=plain(str(plan.topology)),
            ranks=plan.topology.world_size,
            outcome=told[0],
            verdict=told[1],
            seconds=outcome.seconds,
            started=self._began,
            group=self._group,
            started_group=self._start,
            replaced=plain(_replaced(outcome)),
            summary=_summary(plain(failure)),
            failure=plain(failure),
            sections=[(plain(title), plain(text)) for title, text in sections],
            again=plain(again(item, plan)) if red else "",
            waits=graph_of(outcome.waits, outcome.places) if red else None,
            note="" if timeline else _why_none(red, self._all),
            events=len(timeline.events) if timeline else 0,
            timeline=packed(timeline) if timeline else b"",
        )
        self._count += 1
        name = f"{self._worker or 'main'}-{self._count:06d}"
        self._save(lambda: write_test(self._folder / PARTS, name, part))

    def _timeline(self, plan: Plan, outcome: TestOutcome) -> Timeline | None:
        captured = self._captured
        traces = {rank: parse(rank, raw) for rank, raw in captured.traces.items()}
        if not traces:
            return None
        sizes, ledgers = plan.topology.sizes, captured.ledgers
        dead = [rank for rank, place in outcome.places.items() if place == DIED]
        return timeline_of(sizes, traces, ledgers, self._printed, captured.time, dead)

    def _save(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._notes.append(f"a part of the page could not be written: {error}")

    def _anchor(self, item: pytest.Item) -> str:
        return anchor_of(item.nodeid, self._attempts[item.nodeid])

    def _shown(self) -> str:
        """Return the page's path as short as it can be given in the user's folder."""
        page = self._folder / INDEX
        here = Path(self._config.invocation_params.dir)
        return str(page.relative_to(here)) if page.is_relative_to(here) else str(page)


def _unseen(folder: Path, worker: str) -> str:
    who = f"worker {worker} of pytest-xdist" if worker else "this process"
    return (
        f"pprank: {OPTION}: {who} does not see the folder {str(folder)!r} of this run: the page "
        "does not have its tests"
    )


def _told(reports: Sequence[pytest.TestReport]) -> tuple[str, str]:
    """Return how a test has ended, and its verdict."""
    kinds = [RankReport(0, report).kind for report in reports]
    for report in reports:
        verdict = dict(report.user_properties).get(PROPERTY, "")
        if report.failed:
            return "failed", str(verdict)
    for kind in (XFAILED, XPASSED, "skipped"):
        if kind in kinds:
            return kind, ""
    return "passed", ""


def _failure(reports: Sequence[pytest.TestReport]) -> str:
    texts = [report.longreprtext for report in reports if report.longrepr is not None]
    return "\n\n".join(texts)


def _summary(failure: str) -> str:
    """Return the lines of a failure that say what was wrong: those that pytest marks with E."""
    marked = [line[4:] for line in failure.splitlines() if line.startswith("E   ")]
    lines = dedent("\n".join(marked)).splitlines()
    more = [f"... {len(lines) - _SUMMARY} more lines"] if len(lines) > _SUMMARY else []
    return "\n".join(lines[:_SUMMARY] + more)


def _sections(reports: Sequence[pytest.TestReport]) -> list[tuple[str, str]]:
    """Return the sections of all phases; a later phase has those of the earlier ones again."""
    found = dict.fromkeys((title, text) for report in reports for title, text in report.sections)
    texts: dict[str, list[str]] = {}
    for title, text in found:
        texts.setdefault(title, []).append(text)
    return [(title, "\n".join(same)) for title, same in texts.items()]


def _replaced(outcome: TestOutcome) -> str:
    if outcome.spoiled:
        return outcome.spoiled
    return "the test, or an operation in it, has failed" if outcome.unsettled else ""


def _why_none(red: bool, every: bool) -> str:
    if red or every:
        return "no rank has recorded anything: its worker group did not start"
    return ""
