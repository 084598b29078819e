"""Verdicts on problems that no rank could report itself: one class each, with its text."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pytest_pprank.report.evidence import NO_EVIDENCE, Evidence
from pytest_pprank.words import plural_ranks

Detail = tuple[str, str]
"""Title and text of a block below the verdict, such as the stacks of a rank."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Base of these verdicts. `kind`: its name for users and in reports; `text`: who and why."""

    kind: ClassVar[str]
    details: tuple[Detail, ...] = ()

    @property
    def text(self) -> str:
        """Which ranks, where and why, in words."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class _GroupTrouble(Trouble):
    """A verdict on a whole worker group: `error` says what happened to it."""

    error: str

    @property
    def text(self) -> str:
        return self.error


class GroupCouldNotStart(_GroupTrouble):
    """No test of this group can run; `error` has the errors of its ranks."""

    kind = "worker group could not start"


class GroupDied(_GroupTrouble):
    """The group as a whole ended: its launcher died, or elastic failed."""

    kind = "worker group died"


class GroupCouldNotEnd(_GroupTrouble):
    """Processes survived SIGKILL; nothing else may be started beside them."""

    kind = "worker group could not be ended"


@dataclass(frozen=True, kw_only=True)
class CollectionFailed(Trouble):
    """Some ranks lack the test; `reasons` maps each to the reason."""

    kind = "collection failed on a rank"
    reasons: Mapping[int, str]

    @property
    def text(self) -> str:
        each = _by_value(self.reasons)
        return "; ".join(f"{plural_ranks(ranks)}: {why}" for why, ranks in each)


@dataclass(frozen=True, kw_only=True)
class RankDied(Trouble):
    """The process of `rank` has ended: `how`, and in which `place` (phase) of the test."""

    kind = "rank died"
    rank: int
    place: str
    how: str
    evidence: Evidence = NO_EVIDENCE

    @property
    def text(self) -> str:
        said = self.evidence.last_line
        last = f"; the last line of its stderr: {said}" if said else ""
        memory = f"; {self.evidence.out_of_memory}" if self.evidence.out_of_memory else ""
        return f"rank {self.rank} died in {self.place}: {self.how}{memory}{last}"


@dataclass(frozen=True, kw_only=True)
class Late(Trouble):
    """Ranks are still `inside` (rank to place); `waits` says for what and for whom they wait."""

    inside: Mapping[int, str]
    waits: tuple[str, ...] = ()

    def _with_waits(self, text: str) -> str:
        return "\n".join([text, *self.waits])

    def _places(self) -> str:
        return "; ".join(_still(self.inside))


@dataclass(frozen=True, kw_only=True)
class RanksDiverged(Late):
    """Some ranks have finished (`through`: rank to progress), the others did not follow in time."""

    kind = "ranks diverged"
    through: Mapping[int, str]
    seconds: float
    limit: str

    @property
    def text(self) -> str:
        done = "; ".join(f"{plural_ranks(ranks)} {how}" for how, ranks in _by_value(self.through))
        return self._with_waits(
            f"{self._places()}, {self.seconds:.1f} s after {done} ({self.limit})"
        )


@dataclass(frozen=True, kw_only=True)
class Hung(Late):
    """No rank finished within `timeout` seconds."""

    kind = "hung"
    timeout: float

    @property
    def text(self) -> str:
        return self._with_waits(f"no rank got through within {self.timeout:g} s: {self._places()}")


@dataclass(frozen=True, kw_only=True)
class Stuck(Late):
    """Ranks wait for each other in a way that cannot end, so the test ends before the deadline.

    `how`: in a cycle (``deadlock``), or in different operations at the same place (``mismatch``).
    """

    kind = "hung"
    how: str
    seconds: float

    @property
    def text(self) -> str:
        still = f"for {self.seconds:.1f} s nothing has moved, nor can it"
        return self._with_waits(f"{self.how}: {self._places()}, and {still}")


@dataclass(frozen=True, kw_only=True)
class Stopped(Late):
    """A signal has stopped ranks, and the others cannot go on without them."""

    kind = "hung"
    stopped: tuple[int, ...]
    seconds: float

    @property
    def text(self) -> str:
        words = f"{plural_ranks(self.stopped)} stopped (by a signal such as SIGSTOP)"
        return self._with_waits(f"{words} for {self.seconds:.1f} s: {self._places()}")


@dataclass(frozen=True, kw_only=True)
class Quit(Trouble):
    """The user has ended the test at the prompt of `rank`; `inside`: which ranks had not ended."""

    kind = "quit in the debugger"
    rank: int
    where: str
    inside: Mapping[int, str]

    @property
    def text(self) -> str:
        text = f"you ended the test at the prompt of rank {self.rank}, at {self.where}"
        return "; ".join([text, *_still(self.inside)])


def places_of(inside: Mapping[int, str]) -> str:
    """Return where ranks are, in few words: ``setup on rank 0; call on rank 1``."""
    return "; ".join(f"{place} on {plural_ranks(ranks)}" for place, ranks in _by_value(inside))


def describe_exit(code: int | None) -> str:
    """Return in words how a process ended; negative codes are signals, as in subprocess."""
    if code is None:
        return "it closed its connection"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"it exited with code {code}"


def _still(inside: Mapping[int, str]) -> list[str]:
    return [
        f"{plural_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} still inside {place}"
        for place, ranks in _by_value(inside)
    ]


def _by_value(places: Mapping[int, str]) -> list[tuple[str, list[int]]]:
    """Turn rank-to-words into words-to-ranks, in the order of the first rank of each."""
    groups: dict[str, list[int]] = {}
    for rank, place in sorted(places.items()):
        groups.setdefault(place, []).append(rank)
    return list(groups.items())
