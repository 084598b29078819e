"""Delays ranks before operations that they do together."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.faults.base import Perturbation
from pytest_pprank.oplog.file import COLLECTIVE, RECV, SEND, Call
from pytest_pprank.oplog.record.ledger import listen
from pytest_pprank.oplog.record.writer import ISSUED

if TYPE_CHECKING:
    from pytest_pprank.sglang.driver.engine import Engine

_CHANCE, _MOST_S = 0.05, 0.004


class Messages(Perturbation):
    """Delays this rank before it issues a send, a recv or a collective."""

    name: ClassVar[str] = "messages"

    def begin(self) -> None:
        self.disturbance.at_end(listen(self._take))

    def loop(self, engine: Engine) -> None:  # noqa: ARG002
        from pytest_pprank.sglang.events import hooks  # noqa: F401  (the table registers itself)
        from pytest_pprank.sglang.events.hook_points import hook_points

        # prefill's stages also send to the first one outside torch.distributed (SGLang 0.5.22 on)
        if self.disturbance.pprank.role == "prefill":
            hold = self.disturbance.hold
            self.disturbance.at_end(
                hook_points.listen("room_told", lambda _: hold("room", _CHANCE, _MOST_S))
            )

    def _take(self, event: str, call: Call, *_: object) -> None:
        if event == ISSUED and call.way in (SEND, RECV, COLLECTIVE):
            # by thread: the order of events of different threads is not reproducible
            self.disturbance.hold(f"{call.way} {call.thread}", _CHANCE, _MOST_S)
