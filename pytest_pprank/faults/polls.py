"""Lets stages receive the status of a KV transfer late."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.faults.base import Perturbation

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Scheduler
    from pytest_pprank.sglang.driver.engine import Engine

_CHANCE, _MOST = 0.4, 6


class Polls(Perturbation):
    """Lets this stage learn some iterations late that a room is ready, or its KV there."""

    name: ClassVar[str] = "polls"

    def loop(self, engine: Engine) -> None:
        from pytest_pprank.sglang.driver.disagg import Disagg
        from pytest_pprank.sglang.driver.disagg_faults import Fault, late_answers

        if isinstance(engine, Disagg):

            def install(scheduler: Scheduler, fault: Fault) -> None:
                late_answers(scheduler, fault, self._iterations)

            engine.disturb(install)

    def _iterations(self, status: str) -> int:
        """Draw the number of iterations by which a room's new status is delayed."""
        amount = self.disturbance.dice.amount(status, _CHANCE)
        if amount is None:
            return 0
        self.disturbance.strike()
        return 1 + int(amount * _MOST)
