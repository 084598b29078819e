"""KV transfers that take their time, and metadata that comes long after its KV."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.perturb.base import Perturbation

if TYPE_CHECKING:
    from pytest_pprank.sglang.engine import Engine

_CHANCE, _MOST_S = 0.4, 0.012


class Transfers(Perturbation):
    """Holds transfers of this stage back, in the threads of the transfer engine."""

    name: ClassVar[str] = "transfers"

    def loop(self, engine: Engine) -> None:
        from pytest_pprank.sglang.disagg import Disagg
        from pytest_pprank.sglang.disagg_faults import before_transfers

        if isinstance(engine, Disagg):
            engine.disturb(lambda scheduler, fault: before_transfers(scheduler, fault, self._hold))

    def _hold(self) -> None:
        self.disturbance.hold("transfer", _CHANCE, _MOST_S)


class Metadata(Perturbation):
    """Holds a request's metadata back, when its KV has been sent."""

    name: ClassVar[str] = "metadata"

    def loop(self, engine: Engine) -> None:
        from pytest_pprank.sglang.disagg import Disagg
        from pytest_pprank.sglang.disagg_faults import before_metadata

        if isinstance(engine, Disagg) and self.disturbance.pprank.role == "prefill":
            engine.disturb(lambda scheduler, fault: before_metadata(scheduler, fault, self._hold))

    def _hold(self) -> None:
        self.disturbance.hold("metadata", _CHANCE, _MOST_S)
