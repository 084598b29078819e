"""Detects work while paused: a forward between ``pause_generation`` and ``continue_generation``.

A stage that handles a pause at the top of an iteration must not begin a forward in that iteration,
nor in a later one, before it handles the request to continue: weights may be replaced meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pytest_pprank.sglang.driver.views import StageView
from pytest_pprank.sglang.events.types import Forward

_PAUSES = {"pause_generation": True, "continue_generation": False}
_CAUSE = "usual cause: the event loop does not look at Scheduler._engine_paused"


class WorkedWhilePaused(AssertionError):
    """A stage began a forward between a pause and the request to continue."""


class PauseWatch:
    """Tracks on each stage of each role since when it is paused."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, int], list[tuple[int, bool]]] = defaultdict(list)

    def handled(self, role: str, stage: int, name: str, iteration: int) -> None:
        """Record that a stage has handled the control request `name` in an iteration."""
        if name in _PAUSES:
            self._changes[role, stage].append((iteration, _PAUSES[name]))

    def paused(self, role: str, stage: int) -> bool:
        """Return whether a stage is paused now."""
        known = self._changes[role, stage]
        return bool(known) and known[-1][1]

    def resumed(self, role: str, stage: int) -> int:
        """Return the iteration in which a stage last continued after a pause; 0 if in none."""
        return max((at for at, pause in self._changes[role, stage] if not pause), default=0)

    def ran(self, role: str, view: StageView, forwards: Iterable[Forward]) -> None:
        """Record the forwards of one stage. Raises WorkedWhilePaused."""
        __tracebackhide__ = True
        for forward in forwards:
            known = [it for it in self._changes[role, view.number] if it[0] <= forward.iteration]
            if known and known[-1][1]:
                raise WorkedWhilePaused(
                    f"{view.place} worked while paused: it handled pause_generation in iteration "
                    f"{known[-1][0]}, and began in iteration {forward.iteration}: {forward}\n"
                    f"  {_CAUSE}"
                )

    def restart(self) -> None:
        """Record that the loops have been left, and will count iterations from 0."""
        for stage, known in self._changes.items():
            self._changes[stage] = [(0, known[-1][1])] if known else []
