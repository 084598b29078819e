"""Delays KV transfers, and metadata after its KV.

Delays are in iterations of an event loop, not in time: what matters is how far the stages get
meanwhile.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.faults.base import Disturbance, Perturbation, stretched

if TYPE_CHECKING:
    from pytest_pprank.sglang.driver.engine import Engine

_CHANCE, _MOST, _BUDGET = 0.4, 4, 200


class _Iterations(Perturbation):
    """Draws how many iterations something takes: mostly none, seldom more than 4, 200 in total."""

    def __init__(self, disturbance: Disturbance) -> None:
        super().__init__(disturbance)
        self._left = _BUDGET
        self._lock = threading.Lock()

    def draw(self) -> int:
        """Return the next number of iterations. Thread-safe."""
        amount = self.disturbance.dice.amount(self.name, _CHANCE)
        if amount is None:
            return 0
        iterations = 1 + int(_MOST * stretched(amount))
        with self._lock:
            if iterations > self._left:
                return 0
            self._left -= iterations
        self.disturbance.strike()
        return iterations


class Transfers(_Iterations):
    """Delays transfers of this stage, in the threads of the transfer engine."""

    name: ClassVar[str] = "transfers"

    def loop(self, engine: Engine) -> None:
        from pytest_pprank.sglang.driver.disagg import Disagg
        from pytest_pprank.sglang.driver.disagg_faults import late_transfers

        if isinstance(engine, Disagg):
            engine.disturb(lambda scheduler, fault: late_transfers(scheduler, fault, self.draw))


class Metadata(_Iterations):
    """Delays a request's metadata until some iterations after the message that all has arrived.

    This may happen with transfers that write to the memory of another machine.
    """

    name: ClassVar[str] = "metadata"

    def loop(self, engine: Engine) -> None:
        from pytest_pprank.sglang.driver.disagg import Disagg
        from pytest_pprank.sglang.driver.disagg_faults import late_metadata

        if isinstance(engine, Disagg):
            engine.disturb(lambda scheduler, fault: late_metadata(scheduler, fault, self.draw))
