"""Ranks that come late to what they do together."""

from __future__ import annotations

from typing import ClassVar

from pytest_pprank.perturb.base import Perturbation
from pytest_pprank.wire.ledger_file import COLLECTIVE, RECV, SEND, Call
from pytest_pprank.worker.ledger import listen
from pytest_pprank.worker.ledger_writer import ISSUED

_CHANCE, _MOST_S = 0.05, 0.004


class Messages(Perturbation):
    """Holds this rank back before it issues a send, a recv or a collective."""

    name: ClassVar[str] = "messages"

    def begin(self) -> None:
        self.disturbance.at_end(listen(self._take))

    def _take(self, event: str, call: Call) -> None:
        if event == ISSUED and call.way in (SEND, RECV, COLLECTIVE):
            # by thread: which of two comes first is not for us to know
            self.disturbance.hold(f"{call.way} {call.thread}", _CHANCE, _MOST_S)
