"""Stages that do not begin their iterations together."""

from __future__ import annotations

from typing import ClassVar

from pytest_pprank.faults.base import Perturbation

_CHANCE, _MOST_S = 0.15, 0.004


class Skew(Perturbation):
    """Holds this stage back at the top of an iteration, when its turn has come."""

    name: ClassVar[str] = "skew"

    def iteration(self, number: int) -> None:  # noqa: ARG002
        self.disturbance.hold("iteration", _CHANCE, _MOST_S)
