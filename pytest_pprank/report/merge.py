"""Many rank reports, one pytest report: as if the test had run once, and told all it knows."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_pprank.controller.outcome import DIVERGED, TestOutcome, Trouble, plural_ranks
from pytest_pprank.planning import Plan, reaches_sglang
from pytest_pprank.report.rank_report import (
    FAILED,
    PASSED,
    SKIPPED,
    XFAILED,
    XPASSED,
    XPASSED_STRICT,
    RankReport,
)
from pytest_pprank.report.text import PlainFailure

_PHASES = ("setup", "call", "teardown")
_AGREED = {PASSED, SKIPPED, XFAILED, XPASSED}


class ReportMerger:
    """Merges per phase, so that -x, --lf, --durations, --junitxml work as for any test."""

    def __init__(self, config: pytest.Config, reverted: tuple[str, ...]) -> None:
        self._config = config
        self._reverted = reverted

    def merge(self, item: pytest.Item, plan: Plan, outcome: TestOutcome) -> list[pytest.TestReport]:
        """Return the reports of setup, call and teardown, as far as the test got."""
        by_rank = {rank: self._revive(rank, data) for rank, data in outcome.reports.items()}
        merged = []
        for phase in _PHASES:
            reports = [r for own in by_rank.values() for r in own if r.report.when == phase]
            merged += self._subtests(item, plan, phase, [r for r in reports if r.subtest])
            ranks = [r for r in reports if not r.subtest]
            troubles = outcome.troubles if phase == _phase_of_trouble(outcome) else []
            if ranks or troubles:
                verdict = _verdict(ranks, troubles, plan.topology.world_size)
                merged.append(self._phase(item, plan, phase, ranks, verdict, outcome.seconds))
        return merged

    def _subtests(
        self, item: pytest.Item, plan: Plan, phase: str, reports: list[RankReport]
    ) -> list[pytest.TestReport]:
        """Merge the reports of equal subtests; one that not every rank has is no disagreement."""
        merged = []
        for ranks in _equal_subtests(reports):
            verdict = _verdict(ranks, [], len(ranks))
            report = ranks[0].report  # it keeps what makes it one of a subtest
            vars(report).update(vars(self._phase(item, plan, phase, ranks, verdict, 0.0)))
            merged.append(report)
        return merged

    def _revive(self, rank: int, data: list[dict[str, Any]]) -> list[RankReport]:
        revive = self._config.hook.pytest_report_from_serializable
        reports = [RankReport(rank, revive(config=self._config, data=d)) for d in data]
        for revived in reports:
            longrepr: Any = revived.report.longrepr
            if isinstance(longrepr, list):
                revived.report.longrepr = (longrepr[0], longrepr[1], longrepr[2])  # not in JSON
        return reports

    def _phase(
        self,
        item: pytest.Item,
        plan: Plan,
        phase: str,
        ranks: list[RankReport],
        verdict: tuple[str, Any, str | None],
        seconds: float,
    ) -> pytest.TestReport:
        outcome, longrepr, xfail = verdict
        if outcome == FAILED and hasattr(longrepr, "addsection"):
            longrepr.addsection("pprank", self._footnote(plan))
        if isinstance(longrepr, PlainFailure):
            longrepr.locate(str(item.path), (item.location[1] or 0) + 1)
        reports = [r.report for r in ranks]
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome=outcome,  # type: ignore[arg-type]
            longrepr=longrepr,
            when=phase,  # type: ignore[arg-type]
            sections=_sections(ranks) + [("pprank", f"reverted: {r}") for r in self._done(plan)],
            duration=max((r.duration for r in reports), default=seconds),
            start=min((r.start for r in reports), default=0.0),
            stop=max((r.stop for r in reports), default=0.0),
            user_properties=self._properties(ranks, self._done(plan)),
        )
        if xfail is not None:
            report.wasxfail = xfail
        return report

    def _footnote(self, plan: Plan) -> str:
        lines = [f"topology: {plan.topology}"]
        lines += [f"reverted: {text}" for text in self._done(plan)]
        return "\n".join(lines)

    def _done(self, plan: Plan) -> tuple[str, ...]:
        return self._reverted if reaches_sglang(plan) else ()

    def _properties(
        self, ranks: list[RankReport], reverted: tuple[str, ...]
    ) -> list[tuple[str, object]]:
        properties: list[tuple[str, object]] = [("pprank_revert", r) for r in reverted]
        lists = [r.report.user_properties for r in ranks]
        if all(own == lists[0] for own in lists[1:]):
            shared = lists[0] if lists else []
            return properties + [(name, value) for name, value in shared]
        return properties + [
            (f"{name}[pp{r.rank}]", value)
            for r in ranks
            for name, value in r.report.user_properties
        ]


def _equal_subtests(reports: list[RankReport]) -> list[list[RankReport]]:
    groups: dict[tuple[str, int], list[RankReport]] = {}
    for report in reports:
        # the same name twice on one rank is two subtests
        again = 0
        while any(r.rank == report.rank for r in groups.get((report.subtest, again), ())):
            again += 1
        groups.setdefault((report.subtest, again), []).append(report)
    return list(groups.values())


def _phase_of_trouble(outcome: TestOutcome) -> str:
    """The phase that a rank without a report of it is in; nothing but setup if no rank reported."""
    phases = [{r["when"] for r in own if "context" not in r} for own in outcome.reports.values()]
    finished = min(map(len, phases), default=0)
    return _PHASES[min(finished, len(_PHASES) - 1)]


def _verdict(
    ranks: list[RankReport], troubles: list[Trouble], world_size: int
) -> tuple[str, Any, str | None]:
    """Return outcome, longrepr and the xfail reason (None: no xfail) of a merged phase."""
    kinds = {r.kind for r in ranks}
    if not troubles and len(ranks) == world_size and len(kinds) == 1 and kinds <= _AGREED:
        first = ranks[0].report
        return first.outcome, first.longrepr, getattr(first, "wasxfail", None)
    by_itself = {r.kind for r in ranks if not r.is_consequence}
    left_behind = all(trouble.kind == DIVERGED for trouble in troubles)
    if XFAILED in kinds and left_behind and by_itself <= {XFAILED, XPASSED, XPASSED_STRICT}:
        # the test is expected to fail, and as a whole it does: with what follows for its peers
        expected = next(r for r in ranks if r.kind == XFAILED)
        return expected.report.outcome, expected.report.longrepr, expected.reason
    failed = sorted(
        (r for r in ranks if r.kind in (FAILED, XPASSED_STRICT)),
        key=lambda r: (r.is_consequence, r.report.stop),
    )
    if troubles and all(r.is_consequence for r in failed):
        return FAILED, _explain_troubles(troubles, _fold(failed)), None
    if failed:
        return FAILED, _explain_failures(failed, troubles, world_size), None
    return FAILED, PlainFailure("ranks disagree", _disagreement(ranks, world_size)), None


def _explain_failures(failed: list[RankReport], troubles: list[Trouble], world_size: int) -> Any:
    """The first cause, as pytest shows it; what others add follows in sections of its own."""
    culprits, *others = _fold(failed)
    longrepr: Any = culprits[0].report.longrepr
    names = plural_ranks([r.rank for r in culprits])
    if not hasattr(longrepr, "addsection"):
        longrepr = PlainFailure("", str(longrepr))
    crash = getattr(longrepr, "reprcrash", None)
    if crash is not None and world_size > 1:
        crash.message = f"[{names}] {crash.message}"
    longrepr.addsection("ranks", f"failed on {names} of {world_size}" + _consequences(others))
    for group in others:
        if not group[0].is_consequence or culprits[0].is_consequence:
            same = group[0].place == culprits[0].place
            how = "at the same place, with other values" if same else "later, in another way"
            title = f"{plural_ranks([r.rank for r in group])} failed {how}"
            longrepr.addsection(title, group[0].report.longreprtext)
    for trouble in troubles:
        longrepr.addsection(trouble.kind, trouble.text)
        for title, text in trouble.details:
            longrepr.addsection(title, text)
    return longrepr


def _fold(failed: list[RankReport]) -> list[list[RankReport]]:
    groups: list[list[RankReport]] = []
    for report in failed:
        for group in groups:
            if report.same_failure_as(group[0]):
                group.append(report)
                break
        else:
            groups.append([report])
    return groups


def _consequences(others: list[list[RankReport]]) -> str:
    lines = [
        f"\n{plural_ranks([r.rank for r in group])} failed as a consequence: {group[0].message}"
        for group in others
        if group[0].is_consequence
    ]
    return "".join(lines)


def _explain_troubles(troubles: list[Trouble], victims: list[list[RankReport]]) -> PlainFailure:
    first, *more = troubles
    failure = PlainFailure(first.kind, first.text)
    for title, text in first.details:
        failure.addsection(title, text)
    for trouble in more:
        failure.addsection(trouble.kind, trouble.text)
    if victims:
        failure.addsection("ranks", _consequences(victims).lstrip())
    return failure


def _disagreement(ranks: list[RankReport], world_size: int) -> str:
    lines = ["the ranks of one test did not end it in the same way:"]
    for report in ranks:
        reason = f": {report.reason}" if report.kind != PASSED and report.reason else ""
        lines.append(f"  rank {report.rank} {report.kind}{reason}")
    silent = sorted(set(range(world_size)) - {r.rank for r in ranks})
    lines += [f"  rank {rank} reported nothing" for rank in silent]
    return "\n".join(lines)


def _sections(ranks: list[RankReport]) -> list[tuple[str, str]]:
    # rank by rank, and each title keeps the words pytest and junitxml select by
    return [
        (f"{title} (rank {r.rank})", content) for r in ranks for title, content in r.report.sections
    ]
