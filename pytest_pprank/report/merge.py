"""Merges the reports of all ranks into the reports of one test, without losing information."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from pytest_pprank._pytest_compat import subtests_fail_their_test
from pytest_pprank.planning import Plan, reaches_sglang
from pytest_pprank.report.additions import merged_additions
from pytest_pprank.report.fold import fold_equal_lines
from pytest_pprank.report.known import expect_verdicts, known_lines, mark_mended
from pytest_pprank.report.outcome import Printed, TestOutcome
from pytest_pprank.report.perturbed import perturbed_lines
from pytest_pprank.report.rank_report import FAILED, RankReport
from pytest_pprank.report.text import PlainFailure
from pytest_pprank.report.verdict import (
    RANKS,
    TOPOLOGY,
    Failed,
    Verdict,
    carry_on,
    judge,
    note,
    note_verdict,
)
from pytest_pprank.sglang.static.start_noise import without_noise
from pytest_pprank.words import plural_ranks

_PHASES = ("setup", "call", "teardown")


class ReportMerger:
    """Merges per phase, so that -x, --lf, --durations, --junitxml work as for any test."""

    def __init__(self, config: pytest.Config, reverted: tuple[str, ...]) -> None:
        self._config = config
        self._reverted = reverted
        self._verbose = config.get_verbosity() > 0

    def merge(self, item: pytest.Item, plan: Plan, outcome: TestOutcome) -> list[pytest.TestReport]:
        """Return the reports of setup, call and teardown, as far as the test got."""
        size = plan.topology.world_size
        if _all_passed(outcome, size - len(outcome.killed)):
            return [self._passed(item, plan, phase, outcome) for phase in _PHASES]
        by_rank = {rank: self._revive(item, rank, d) for rank, d in outcome.reports.items()}
        for own in by_rank.values():
            for each in own:
                mark_mended(each.report, plan.known_bugs)
        merged = []
        for phase in _PHASES:
            reports = [r for own in by_rank.values() for r in own if r.report.when == phase]
            for subtest in self._subtests(item, plan, phase, [r for r in reports if r.subtest]):
                _add_footnote(subtest, self._footnote(plan, outcome, subtest))
                merged.append(subtest)
            ranks = [r for r in reports if not r.subtest]
            troubles = outcome.troubles if phase == _phase_of_trouble(outcome) else []
            if outcome.troubles and not troubles and not _worth_reporting(ranks, plan):
                continue  # some ranks were ended before this phase, which is reported already
            if ranks or troubles:
                verdict = judge(phase, ranks, troubles, size, killed=len(outcome.killed))
                printed = self._without_noise(outcome.printed, phase)
                sections = _sections(ranks, printed, phase, verdict.outcome)
                merged.append(
                    self._phase(item, plan, phase, ranks, verdict, sections, outcome.seconds)
                )
                _fail_for_subtests(merged)
                _add_footnote(merged[-1], self._footnote(plan, outcome, merged[-1]))
        if not any(report.when == "teardown" for report in merged):
            merged.append(self._cut_off(item, plan, outcome))
        carry_on(merged)
        expect_verdicts(item, merged, plan.known_bugs)
        return merged

    def _passed(
        self, item: pytest.Item, plan: Plan, phase: str, outcome: TestOutcome
    ) -> pytest.TestReport:
        """Return the report of a phase that passed on all ranks. A fast path: most tests pass."""
        number = _PHASES.index(phase)
        times = [own[number] for own in outcome.reports.values()]
        return _test_report(
            item,
            phase,
            "passed",
            _sections([], self._without_noise(outcome.printed, phase), phase) + self._reverts(plan),
            duration=max(t["duration"] for t in times),
            start=min(t["start"] for t in times),
            stop=max(t["stop"] for t in times),
            user_properties=self._properties([], plan),
        )

    def _cut_off(self, item: pytest.Item, plan: Plan, outcome: TestOutcome) -> pytest.TestReport:
        """Return a teardown report for a test whose group was ended before its teardown.

        With pytest alone every test has one, and plugins that write files about tests wait for it.
        """
        printed = self._without_noise(outcome.printed, "teardown")
        sections = _sections([], printed, "teardown") + self._reverts(plan)
        own = self._properties([], plan)
        return _test_report(item, "teardown", "passed", sections, user_properties=own)

    def _without_noise(self, printed: dict[int, Printed], phase: str) -> dict[int, Printed]:
        """Leave out what SGLang's start prints in every run, in reports of a later phase.

        A start that has failed keeps all of it.
        """
        if self._verbose or phase == "setup" or not any("setup" in own for own in printed.values()):
            return printed
        return {
            rank: {
                name: {s: without_noise(text) for s, text in streams.items()}
                if name == "setup"
                else streams
                for name, streams in own.items()
            }
            for rank, own in printed.items()
        }

    def _subtests(
        self, item: pytest.Item, plan: Plan, phase: str, reports: list[RankReport]
    ) -> list[pytest.TestReport]:
        """Merge the reports of equal subtests; one that some ranks lack is no disagreement."""
        merged = []
        for ranks in _equal_subtests(reports):
            verdict = judge(phase, ranks, [], len(ranks))
            report = ranks[0].report  # reuse its class and attributes, those of a subtest
            sections = _sections(ranks, {}, phase, verdict.outcome)
            whole = self._phase(item, plan, phase, ranks, verdict, sections, 0.0)
            vars(report).update(vars(whole))
            merged.append(report)
        return merged

    def _revive(self, item: pytest.Item, rank: int, data: list[dict[str, Any]]) -> list[RankReport]:
        revive = self._config.hook.pytest_report_from_serializable
        reports = [
            RankReport(
                rank, revive(config=self._config, data=d) if "nodeid" in d else _plain(item, d)
            )
            for d in data
        ]
        for revived in reports:
            longrepr: object = revived.report.longrepr
            if isinstance(longrepr, list):
                # JSON has no tuples
                revived.report.longrepr = (longrepr[0], longrepr[1], longrepr[2])
        return reports

    def _phase(
        self,
        item: pytest.Item,
        plan: Plan,
        phase: str,
        ranks: list[RankReport],
        verdict: Verdict,
        sections: list[tuple[str, str]],
        seconds: float,
    ) -> pytest.TestReport:
        culprits = verdict.culprits  # before their messages are changed
        outcome, longrepr, xfail = verdict.outcome, verdict.explain(), verdict.xfail
        if isinstance(longrepr, PlainFailure):
            longrepr.locate(str(item.path), (item.location[1] or 0) + 1)
        reports = [r.report for r in ranks]
        report = _test_report(
            item,
            phase,
            outcome,
            sections + ([] if hasattr(longrepr, "addsection") else self._reverts(plan)),
            longrepr=longrepr,
            duration=max((r.duration for r in reports), default=seconds),
            start=min((r.start for r in reports), default=0.0),
            stop=max((r.stop for r in reports), default=0.0),
            user_properties=self._properties(ranks, plan),
        )
        vars(report).update(merged_additions(ranks))
        if outcome == FAILED:
            note_verdict([report], verdict.kind)
            if culprits:
                note([report], RANKS, ",".join(map(str, culprits)))
        if xfail is not None:
            report.wasxfail = xfail
        return report

    def _footnote(self, plan: Plan, outcome: TestOutcome, report: pytest.TestReport) -> str:
        lines = [*known_lines(report, plan.known_bugs), f"topology: {plan.topology}"]
        lines += [f"reverted: {text}" for text in self._done(plan)]
        lines += perturbed_lines(plan, outcome.perturbed)
        return "\n".join(lines)

    def _reverts(self, plan: Plan) -> list[tuple[str, str]]:
        lines = "\n".join(f"reverted: {text}" for text in self._done(plan))
        return [("pprank", lines)] if lines else []

    def _done(self, plan: Plan) -> tuple[str, ...]:
        return self._reverted if reaches_sglang(plan) else ()

    def _properties(self, ranks: list[RankReport], plan: Plan) -> list[tuple[str, object]]:
        properties: list[tuple[str, object]] = [(TOPOLOGY, str(plan.topology))]
        properties += [("pprank_revert", text) for text in self._done(plan)]
        lists = [r.report.user_properties for r in ranks]
        if all(own == lists[0] for own in lists[1:]):
            shared = lists[0] if lists else []
            return properties + [(name, value) for name, value in shared]
        return properties + [
            (f"{name}[pp{r.rank}]", value)
            for r in ranks
            for name, value in r.report.user_properties
        ]


def _test_report(
    item: pytest.Item, phase: str, outcome: str, sections: list[tuple[str, str]], **more: Any
) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=outcome,  # type: ignore[arg-type]
        when=phase,  # type: ignore[arg-type]
        sections=sections,
        **{"longrepr": None, **more},
    )


def _fail_for_subtests(merged: list[pytest.TestReport]) -> None:
    """If the last report is of a call with failed subtests, let it fail, as pytest does."""
    report = merged[-1]
    failed = sum(each.failed and hasattr(each, "context") for each in merged)
    if report.when == "call" and report.passed and failed and subtests_fail_their_test():
        suffix = "s" if failed > 1 else ""
        report.outcome = "failed"
        report.longrepr = f"contains {failed} failed subtest{suffix}"
        note_verdict([report], Failed.kind)


def _add_footnote(report: pytest.TestReport, text: str) -> None:
    longrepr: object = report.longrepr
    if report.outcome == FAILED and hasattr(longrepr, "addsection"):
        longrepr.addsection("pprank", text)


def _all_passed(outcome: TestOutcome, ranks: int) -> bool:
    """Return whether all `ranks` passed all phases, and reported nothing but times."""
    if outcome.troubles or len(outcome.reports) != ranks:
        return False
    return all(
        tuple([r["when"] for r in own]) == _PHASES and not any("nodeid" in r for r in own)
        for own in outcome.reports.values()
    )


def _plain(item: pytest.Item, data: dict[str, Any]) -> pytest.TestReport:
    """Create a report from protocol.messages.PLAIN_FIELDS."""
    return pytest.TestReport(item.nodeid, item.location, {}, longrepr=None, **data)


def _worth_reporting(ranks: list[RankReport], plan: Plan) -> bool:
    """Return whether a phase has something to report besides the trouble in another phase."""
    failed = any(r.kind == FAILED and not r.is_consequence for r in ranks)
    return failed or len(ranks) == plan.topology.world_size


def _equal_subtests(reports: list[RankReport]) -> list[list[RankReport]]:
    groups: dict[tuple[str, int], list[RankReport]] = {}
    for report in reports:
        # one name twice on one rank means two subtests
        again = 0
        while any(r.rank == report.rank for r in groups.get((report.subtest, again), ())):
            again += 1
        groups.setdefault((report.subtest, again), []).append(report)
    return list(groups.values())


def _phase_of_trouble(outcome: TestOutcome) -> str:
    """Return the first phase that some rank has not reported; setup if no rank has reported."""
    phases = [{r["when"] for r in own if "context" not in r} for own in outcome.reports.values()]
    finished = min(map(len, phases), default=0)
    return _PHASES[min(finished, len(_PHASES) - 1)]


def _sections(
    ranks: list[RankReport], printed: dict[int, Printed], phase: str, outcome: str = ""
) -> list[tuple[str, str]]:
    """Return captured output up to the end of `phase`, phase by phase, and by rank in each.

    Sections that are equal on several ranks are shown once. In a failure, which is read and not
    only stored, equal lines are folded as well. Each title keeps the words by which pytest and
    junit.xml select sections.
    """
    if not ranks and not any(printed.values()):
        return []
    logged = {r.rank: r.report.sections for r in ranks}
    sections: dict[tuple[str, str], dict[int, None]] = {}
    for name in (*_PHASES[: _PHASES.index(phase) + 1], ""):
        for rank in sorted({*logged, *printed}):
            for section in _sections_of(logged.get(rank, ()), printed.get(rank, {}), name):
                sections.setdefault(section, {})[rank] = None
    each = ((title, text, who) for (title, text), who in sections.items())
    shown = fold_equal_lines(sections) if outcome == FAILED else each
    return [(f"{title} ({plural_ranks(who)})", text) for title, text, who in shown]


def _sections_of(
    logged: Iterable[tuple[str, str]], printed: Printed, phase: str
) -> Iterator[tuple[str, str]]:
    """Yield what one rank has printed and logged in a phase; ``""``: sections of no phase."""
    for stream, text in printed.get(phase, {}).items():
        if text:
            yield f"Captured {stream} {phase}", text
    for title, text in logged:
        if title.endswith(f" {phase}") if phase else not title.endswith(_PHASES):
            yield title, text
