"""Aborts of requests at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.faults.base import Perturbation

if TYPE_CHECKING:
    from pytest_pprank.sglang.driver.engine import Engine

_CHANCE = 0.15


class Aborts(Perturbation):
    """Aborts a running request between two steps of the event loops, the same one on all ranks."""

    name: ClassVar[str] = "aborts"

    def loop(self, engine: Engine) -> None:
        self._engine = engine
        engine.before_each_step(self._maybe_abort)

    def _maybe_abort(self) -> None:
        dice = self.disturbance.shared
        left = [rid for rid, result in self._engine.results.items() if not result.finished]
        if not left or dice.draw("whether") >= _CHANCE:
            return
        self.disturbance.strike()
        self._engine.abort(left[int(dice.draw("which") * len(left))])
