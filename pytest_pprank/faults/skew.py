"""Lets stages begin their iterations at different times."""

from __future__ import annotations

from typing import ClassVar

from pytest_pprank.faults.base import Perturbation

_CHANCE, _MOST_S = 0.15, 0.004


class Skew(Perturbation):
    """Delays this stage at the beginning of some iterations."""

    name: ClassVar[str] = "skew"

    def iteration(self, number: int) -> None:  # noqa: ARG002
        self.disturbance.hold("iteration", _CHANCE, _MOST_S)
