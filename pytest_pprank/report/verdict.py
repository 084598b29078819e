"""The verdict on one phase of a test, from the reports of its ranks and the group's troubles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from pytest_pprank._pytest_compat import ExceptionRepr
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
from pytest_pprank.report.verdicts import RankDied, RanksDiverged, Trouble
from pytest_pprank.words import plural_ranks

_AGREED = {PASSED, SKIPPED, XFAILED, XPASSED}
PROPERTY = "pprank_verdict"
"""The user property (in junit.xml, too) with the name of the verdict."""
RANKS = "pprank_failed_ranks"
"""The one with the ranks that failed first, such as ``0,1``."""
TOPOLOGY = "pprank_topology"
"""The one of all ranked tests, such as ``pp=2 device=cpu``."""


def note(reports: Sequence[pytest.TestReport], name: str, value: object) -> None:
    """Note a user property in all `reports`: those of the phase it is about, and of later phases.

    As pytest does with user properties: junit.xml has those of the last phase.
    """
    for report in reports:
        if (name, value) not in report.user_properties:
            report.user_properties.append((name, value))


def note_verdict(reports: Sequence[pytest.TestReport], kind: str) -> None:
    """Note the verdict on a phase, and on the phases after it."""
    note(reports, PROPERTY, kind)


def carry_on(reports: Sequence[pytest.TestReport]) -> None:
    """Note in each of a test's reports what those before it say about the verdict."""
    for number, report in enumerate(reports):
        for name, value in list(report.user_properties):
            if name in (PROPERTY, RANKS):
                note(reports[number:], name, value)


@dataclass(frozen=True)
class Verdict:
    """Base of the verdicts on a phase: `ranks` have reported it, out of `world_size`."""

    kind: ClassVar[str]
    ranks: tuple[RankReport, ...]
    world_size: int

    @property
    def outcome(self) -> str:
        """pytest's outcome: ``passed``, ``failed`` or ``skipped``."""
        return FAILED

    @property
    def xfail(self) -> str | None:
        """The reason of an xfail; None if it is not one."""
        return None

    @property
    def culprits(self) -> list[int]:
        """The ranks that failed first, as far as that is known."""
        return []

    def explain(self) -> object:
        """Return what pytest is to show: a longrepr."""
        raise NotImplementedError


class Agreed(Verdict):
    """All ranks passed, or all skipped, or all failed as expected."""

    kind = "agreed"

    @property
    def outcome(self) -> str:
        return str(self.ranks[0].report.outcome)

    @property
    def xfail(self) -> str | None:
        reason = getattr(self.ranks[0].report, "wasxfail", None)
        return None if reason is None else str(reason)

    def explain(self) -> object:
        return self.ranks[0].report.longrepr


class FailedAsExpected(Verdict):
    """Some ranks failed as expected, and the others only as a consequence, or passed."""

    kind = "xfailed"

    @property
    def _first(self) -> RankReport:
        return next(r for r in self.ranks if r.kind == XFAILED)

    @property
    def outcome(self) -> str:
        return str(self._first.report.outcome)

    @property
    def xfail(self) -> str | None:
        return self._first.reason

    def explain(self) -> object:
        return self._first.report.longrepr


@dataclass(frozen=True)
class Failed(Verdict):
    """Some ranks failed. The first cause is shown first; its consequences are one line each."""

    kind = "failed"
    troubles: tuple[Trouble, ...] = ()

    @property
    def culprits(self) -> list[int]:
        return sorted(report.rank for report in _fold(_failed(self.ranks))[0])

    def explain(self) -> object:
        culprits, *others = _fold(_failed(self.ranks))
        longrepr: Any = culprits[0].report.longrepr
        names = plural_ranks(r.rank for r in culprits)
        if not hasattr(longrepr, "addsection"):
            longrepr = PlainFailure("", str(longrepr))
        crash = getattr(longrepr, "reprcrash", None)
        if crash is not None and self.world_size > 1:
            crash.message = f"[{names}] {_without_our_modules(crash.message)}"
        summary = f"{self.kind} on {names} of {self.world_size}"
        longrepr.addsection("ranks", summary + _consequences(others))
        for group in others:
            if not group[0].is_consequence or culprits[0].is_consequence:
                _add_other_failure(longrepr, culprits[0], group)
        for trouble in self.troubles:
            _add_trouble(longrepr, trouble)
        return longrepr


class SetupFailed(Failed):
    """Some ranks failed in setup, so none ran the test."""

    kind = "setup failed"


class TeardownFailed(Failed):
    """Some ranks failed in teardown."""

    kind = "teardown failed"


class Disagreed(Verdict):
    """The ranks ended the phase in different ways, none of them a failure."""

    kind = "ranks disagree"

    def explain(self) -> object:
        lines = ["the ranks of one test did not end it in the same way:"]
        for report in self.ranks:
            reason = f": {report.reason}" if report.kind != PASSED and report.reason else ""
            lines.append(f"  rank {report.rank} {report.kind}{reason}")
        silent = sorted(set(range(self.world_size)) - {r.rank for r in self.ranks})
        lines += [f"  rank {rank} reported nothing" for rank in silent]
        return PlainFailure(self.kind, "\n".join(lines))


@dataclass(frozen=True)
class Broken(Verdict):
    """Something happened to the ranks that none of them could report."""

    troubles: tuple[Trouble, ...] = ()

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The kind of the first trouble."""
        return self.troubles[0].kind

    @property
    def culprits(self) -> list[int]:
        first = self.troubles[0]
        return [first.rank] if isinstance(first, RankDied) else []

    def explain(self) -> object:
        first, *more = self.troubles
        failure = PlainFailure(first.kind, first.text)
        for title, text in first.details:
            failure.addsection(title, text)
        for trouble in more:
            _add_trouble(failure, trouble)
        victims = _fold(_failed(self.ranks))
        if victims:
            failure.addsection("ranks", _consequences(victims).lstrip())
        return failure


_FAILED_IN = {"setup": SetupFailed, "call": Failed, "teardown": TeardownFailed}


def judge(
    phase: str,
    ranks: Sequence[RankReport],
    troubles: Sequence[Trouble],
    world_size: int,
    *,
    killed: int = 0,
) -> Verdict:
    """Return the verdict on a phase (``setup``, ``call``, ``teardown``).

    `killed`: how many of `world_size` ranks the test has had killed; they have no reports.
    """
    reports, all_troubles = tuple(ranks), tuple(troubles)
    kinds = {r.kind for r in reports}
    whole = len(reports) == world_size - killed
    if not all_troubles and whole and len(kinds) == 1 and kinds <= _AGREED:
        return Agreed(reports, world_size)
    by_itself = {r.kind for r in reports if not r.is_consequence}
    left_behind = all(isinstance(trouble, RanksDiverged) for trouble in all_troubles)
    if XFAILED in kinds and left_behind and by_itself <= {XFAILED, XPASSED, XPASSED_STRICT}:
        return FailedAsExpected(reports, world_size)
    failed = _failed(reports)
    if all_troubles and all(r.is_consequence for r in failed):
        return Broken(reports, world_size, all_troubles)
    if failed:
        return _FAILED_IN[phase](reports, world_size, all_troubles)
    return Disagreed(reports, world_size)


def _failed(ranks: Sequence[RankReport]) -> list[RankReport]:
    """Return the failed reports, the first cause first."""
    failed = (r for r in ranks if r.kind in (FAILED, XPASSED_STRICT))
    return sorted(failed, key=lambda r: (r.is_consequence, r.report.stop))


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


def _add_other_failure(
    longrepr: ExceptionRepr, culprit: RankReport, group: list[RankReport]
) -> None:
    same = group[0].place == culprit.place
    how = "at the same place, with other values" if same else "later, in another way"
    title = f"{plural_ranks(r.rank for r in group)} failed {how}"
    longrepr.addsection(title, group[0].report.longreprtext)


def _add_trouble(longrepr: ExceptionRepr, trouble: Trouble) -> None:
    longrepr.addsection(trouble.kind, trouble.text)
    for title, text in trouble.details:
        longrepr.addsection(title, text)


def _consequences(others: list[list[RankReport]]) -> str:
    lines = [
        f"\n{plural_ranks(r.rank for r in group)} failed as a consequence: {group[0].message}"
        for group in others
        if group[0].is_consequence
    ]
    return "".join(lines)


def _without_our_modules(message: str) -> str:
    """Remove the module from the name of an error of ours: a summary has room for few words."""
    return re.sub(r"^pytest_pprank\.[\w.]+\.(?=\w+(:|$))", "", message)
