"""What became of each mutant, in the words of mutation testing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from pytest_pprank.bench.judgement import NOT_REACHED, Result, Status
from pytest_pprank.mutants.points import Mutant


class Outcome(str, Enum):
    """The outcome of one mutant, in the order of tables and of the page."""

    SURVIVED = "survived"
    HUNG = "hung"
    FAILED = "could not run"
    KILLED = "killed"
    NOT_REACHED = "not reached"
    NOT_RUN = "not run"


_OF_STATUS = {
    Status.CAUGHT: Outcome.KILLED,
    Status.MISSED: Outcome.SURVIVED,
    Status.HUNG: Outcome.HUNG,
    Status.MISFIT: Outcome.FAILED,
    Status.FAILED: Outcome.FAILED,
}


@dataclass(frozen=True)
class Judged:
    """A mutant with its result; None if it was not measured."""

    mutant: Mutant
    result: Result | None

    @property
    def outcome(self) -> Outcome:
        """Its outcome."""
        if self.result is None:
            return Outcome.NOT_RUN
        if self.result.status is Status.MISSED and self.result.reason == NOT_REACHED:
            return Outcome.NOT_REACHED
        return _OF_STATUS[self.result.status]

    @property
    def words(self) -> str:
        """What killed it, or why it is not killed."""
        if self.result is None:
            return ""
        if self.outcome is Outcome.SURVIVED:
            return f"{self.result.tests} tests ran, none went red"
        if self.outcome is not Outcome.KILLED:
            return self.result.reason.strip().partition("\n")[0]
        device = f" (device {self.result.device})" if self.result.device else ""
        return f"{self.result.seen_by}{device}"


def judged(mutants: Iterable[Mutant], results: Mapping[str, Result]) -> list[Judged]:
    """Return each mutant with its result."""
    return [Judged(mutant, results.get(mutant.id)) for mutant in mutants]


@dataclass(frozen=True)
class Score:
    """How many mutants came to each outcome."""

    counts: Mapping[Outcome, int]

    @property
    def reached(self) -> int:
        """How many are killed or survived; the others say nothing of the tests."""
        return self.counts[Outcome.KILLED] + self.counts[Outcome.SURVIVED]

    @property
    def percent(self) -> str:
        """The part of the reached ones that is killed, in percent; "-" without any."""
        return f"{100 * self.counts[Outcome.KILLED] / self.reached:.0f}" if self.reached else "-"


def score_of(found: Iterable[Judged]) -> Score:
    """Count the outcomes."""
    return Score(Counter(each.outcome for each in found))
