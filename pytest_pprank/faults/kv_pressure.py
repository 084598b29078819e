"""Lets KV run out occasionally."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.faults.base import Perturbation

if TYPE_CHECKING:
    from pytest_pprank.sglang.driver.engine import Engine

_CHANCE, _MOST = 0.06, 3


class KvPressure(Perturbation):
    """Lets SGLang find, before a decode, that there is no KV for it: a request is retracted.

    The stages of a pipeline decide independently and must come to the same result, so all of them
    draw the same. Not used with separate prefill and decode, where a retracted request may be
    aborted.
    """

    name: ClassVar[str] = "kv_pressure"

    def loop(self, engine: Engine) -> None:  # noqa: ARG002
        if self.disturbance.pprank.role == "pp":
            from pytest_pprank.sglang.stage.retraction import let_kv_run_out

            self.disturbance.at_end(let_kv_run_out(self._runs_out))

    def _runs_out(self) -> bool:
        if self.disturbance.did >= _MOST or self.disturbance.shared.draw() >= _CHANCE:
            return False
        self.disturbance.strike()
        return True
