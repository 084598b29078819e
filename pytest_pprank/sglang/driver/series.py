"""The sequence of what each stage did: all stages of a role must do the same."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_pprank.sglang.driver.views import StageView, first_difference
from pytest_pprank.sglang.events.types import Forward


class StagesDiffer(AssertionError):
    """Two stages of a role did different things in the same iteration."""


class Series:
    """What this stage has done (`mine`), and what all ranks have reported so far.

    `words`: what the stages did not do alike, for the message.
    """

    def __init__(self, world_size: int, words: str) -> None:
        self.mine: list[Forward] = []
        self._taken = 0
        self._all: list[list[Forward]] = [[] for _ in range(world_size)]
        self._words = words

    def take_new(self) -> list[Forward]:
        """Return the entries since the last call."""
        new = self.mine[self._taken :]
        self._taken = len(self.mine)
        return new

    def record(self, reports: Sequence[tuple[int, StageView, str, list[Forward]]]) -> None:
        """Add number, view, role and new entries of each rank that is alive.

        Raises StagesDiffer, with the first difference.
        """
        __tracebackhide__ = True
        before = [len(known) for known in self._all]
        for rank, _, _, new in reports:
            self._all[rank] += new
        for role, dp_rank in dict.fromkeys((role, view.dp_rank) for _, view, role, _ in reports):
            alike = [it for it in reports if (it[2], it[1].dp_rank) == (role, dp_rank)]
            ranks, views = [rank for rank, _, _, _ in alike], [view for _, view, _, _ in alike]
            since = min(before[rank] for rank in ranks)
            ran = {view.label: self._all[rank] for rank, view in zip(ranks, views, strict=True)}
            if lines := first_difference(ran, since, [view.iterations for view in views]):
                of_role = "" if role == "pp" else f" of {role}"
                head = f"the stages{of_role} did not {self._words}:"
                raise StagesDiffer("\n  ".join([head, *lines]))
