"""Messages and collectives: every handle waited for, and what one rank does fits the others'.

On a test that is through. While ranks still wait for each other, the wait graph says the same
(controller.wait_graph).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pytest_pprank.sanitizers.base import Sanitizer
from pytest_pprank.sanitizers.p2p_compare import Evidence
from pytest_pprank.wire.ledger_file import COLLECTIVE, RECV, SEND, Call, Channel
from pytest_pprank.worker.ledger import listen, open_calls
from pytest_pprank.worker.ledger_writer import DROPPED

if TYPE_CHECKING:
    from pytest_pprank.sglang.events.types import Quiescent

_UNEVEN = ("all_to_all", "monitored_barrier", "barrier")
"""Kinds in which ranks may bring different amounts, or bring none."""
_WAIT = "keep the handle (and what it sends) until its wait() has returned"
_MOST = 20000


class P2P(Sanitizer):
    """Listens to the ledger of operations."""

    name: ClassVar[str] = "p2p"

    def begin(self) -> None:
        self._channels: dict[Channel, _Log] = {}
        self.watch.at_end(listen(lambda event, call: self.watch.guard(self._take, event, call)))

    def quiescent(self, left: Quiescent) -> None:  # noqa: ARG002
        self._report_open("the event loops have been left")

    def end(self) -> None:
        if not self.watch.pprank.spoiled:
            self._report_open("the test is over")

    def evidence(self) -> Evidence | None:
        return [log.evidence(channel) for channel, log in self._channels.items()] or None

    def _take(self, event: str, call: Call) -> None:
        if event == DROPPED and (self.watch.pprank.failed or self.watch.pprank.spoiled):
            return  # loops and frames that were given up take their handles along
        if event == DROPPED:
            text = f"{_words(call)} was never waited for: its handle is gone"
            self.watch.report(text, _sites(call), _WAIT)
        elif call.way in (SEND, RECV, COLLECTIVE):
            channel = call.channel
            log = self._channels.get(channel)
            if log is None:
                log = self._channels[channel] = _Log(call)
            log.add(call)

    def _report_open(self, when: str) -> None:
        for call in open_calls():
            if call.way in (SEND, RECV, COLLECTIVE):
                text = f"{_words(call)} has not been waited for, and {when}"
                self.watch.report(text, _sites(call), _WAIT)


class _Log:
    """The operations on one channel: most are like an earlier one."""

    def __init__(self, first: Call) -> None:
        self._first = first
        self._kinds: dict[tuple[Any, ...], int] = {}
        self._told: list[tuple[str, str]] = []
        self._operations: list[int] = []

    def add(self, call: Call) -> None:
        key = (call.kind, call.dtype, call.shapes, call.nbytes, call.root, call.site)
        number = self._kinds.get(key)
        if number is None:
            number = self._kinds[key] = len(self._told)
            self._told.append((_what(call), str(call.site)))
        if len(self._operations) < _MOST:
            self._operations.append(number)

    def evidence(self, channel: Channel) -> dict[str, Any]:
        first = self._first
        return {
            "way": channel.way,
            "group": channel.group,
            "label": first.label,
            "peer": channel.peer,
            "tag": channel.tag,
            "ranks": list(first.ranks),
            "kinds": self._told,
            "operations": self._operations,
        }


def _what(call: Call) -> str:
    """Return what must be the same on both ends."""
    if call.kind.startswith(_UNEVEN):
        return call.kind
    shapes = ", ".join(str(list(shape)) for shape in call.shapes)
    tensors = f"{call.dtype}{shapes}" if call.tensors == 1 else f"{call.tensors} {call.dtype}"
    if call.way != COLLECTIVE:
        return tensors
    root = "" if call.root is None else f" of rank {call.root}"
    # the shapes of a collective may differ, its amount may not
    return f"{call.kind}{root} of {call.dtype}, {call.nbytes} B"


def _words(call: Call) -> str:
    kind = {SEND: "isend", RECV: "irecv"}.get(call.way, call.kind)
    peer = "" if call.peer is None else f" {'to' if call.way == SEND else 'from'} rank {call.peer}"
    shapes = ", ".join(str(list(shape)) for shape in call.shapes)
    return f"{kind} of {call.dtype}{shapes}{peer} ({call.label}, tag {call.tag})"


def _sites(call: Call) -> tuple[Any, ...]:
    return (call.site,) if call.via is None else (call.site, call.via)
