"""Stages that do not begin their iterations together."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.faults.base import Perturbation

if TYPE_CHECKING:
    from pytest_pprank.sglang.driver.engine import Engine

_CHANCE, _MOST_S = 0.15, 0.004


class Skew(Perturbation):
    """Holds this stage back at the top of an iteration, when its turn has come."""

    name: ClassVar[str] = "skew"

    def loop(self, engine: Engine) -> None:
        hold = self.disturbance.hold
        engine.at_start_of_iteration(lambda: hold("iteration", _CHANCE, _MOST_S))
