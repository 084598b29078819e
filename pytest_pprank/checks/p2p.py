"""Messages and collectives: every handle is waited for, and the operations of all ranks match.

Checked after a finished test. While ranks still wait for each other, the wait graph shows the same
(oplog.read.wait_graph).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.checks.p2p_compare import Evidence
from pytest_pprank.oplog.file import COLLECTIVE, CREATE, RECV, SEND, Call, Channel, Site
from pytest_pprank.oplog.record.ledger import listen, open_calls, world_ranks
from pytest_pprank.oplog.record.writer import CREATED, DROPPED, FAILED, ISSUED, REFUSED
from pytest_pprank.words import plural_ranks

if TYPE_CHECKING:
    from pytest_pprank.sglang.events.types import Quiescent

_UNEVEN = ("all_to_all", "monitored_barrier", "barrier")
"""Kinds of operations in which ranks may send different amounts, or none."""
_CREATIONS = Channel(CREATE, "")
_WAIT = "keep the handle (and what it sends) until its wait() has returned"
_MOST = 20000


class P2P(Sanitizer):
    """Listens to the operations that the ledger records."""

    name: ClassVar[str] = "p2p"

    def begin(self) -> None:
        self._channels: dict[Channel, _Log] = {}
        self.watch.at_end(listen(lambda *event: self.watch.guard(self._take, *event)))

    def quiescent(self, left: Quiescent) -> None:  # noqa: ARG002
        self._report_open("the event loops have been left")

    def end(self) -> None:
        if not self.watch.pprank.spoiled:
            self._report_open("the test is over")

    def evidence(self) -> Evidence | None:
        return [log.evidence(channel) for channel, log in self._channels.items()] or None

    def _take(self, event: str, call: Call, number: int) -> None:
        if event == DROPPED:
            self._dropped(call)
        elif event == CREATED and _counted(call):
            self._log(_CREATIONS, replace(call, ranks=world_ranks())).add(call, number)
        elif call.way in (SEND, RECV, COLLECTIVE):
            log = self._log(call.channel, call)
            if event == ISSUED:
                log.add(call, number)
            elif event == REFUSED:
                log.withdraw(number)
            elif event == FAILED:
                log.fail(number)
        elif event == FAILED and _CREATIONS in self._channels:
            self._channels[_CREATIONS].fail(number)

    def _dropped(self, call: Call) -> None:
        if self.watch.pprank.failed or self.watch.pprank.spoiled:
            return  # aborted loops and frames delete their handles
        if not call.error:  # an error means that there was a wait, which raised
            text = f"{_words(call)} was never waited for: its handle is gone"
            self.watch.report(text, _sites(call), _WAIT)

    def _log(self, channel: Channel, first: Call) -> _Log:
        log = self._channels.get(channel)
        if log is None:
            log = self._channels[channel] = _Log(first)
        return log

    def _report_open(self, when: str) -> None:
        for call in open_calls():
            if call.way in (SEND, RECV, COLLECTIVE):
                text = f"{_words(call)} has not been waited for, and {when}"
                self.watch.report(text, _sites(call), _WAIT)


class _Log:
    """The operations on one channel, as indices into a list of the different ones."""

    def __init__(self, first: Call) -> None:
        self._first = first
        self._kinds: dict[tuple[object, ...], int] = {}
        self._kind_texts: list[tuple[str, str]] = []
        self._operations: list[int] = []
        self._numbers: list[int] = []
        self._failed: int | None = None

    def add(self, call: Call, own: int) -> None:
        """Add an operation; `own` is its number on this rank."""
        key = (call.kind, call.dtype, call.shapes, call.nbytes, call.root, call.site)
        number = self._kinds.get(key)
        if number is None:
            number = self._kinds[key] = len(self._kind_texts)
            self._kind_texts.append((_what(call), str(call.site)))
        if len(self._operations) < _MOST:
            self._operations.append(number)
            self._numbers.append(own)

    def withdraw(self, own: int) -> None:
        """Remove an operation that was never begun."""
        if own in self._numbers:
            at = self._numbers.index(own)
            del self._numbers[at], self._operations[at]

    def fail(self, own: int) -> None:
        """Note that an operation has raised."""
        if own in self._numbers:
            at = self._numbers.index(own)
            self._failed = at if self._failed is None else min(at, self._failed)

    def evidence(self, channel: Channel) -> dict[str, object]:
        first = self._first
        return {
            "way": channel.way,
            "group": channel.group,
            "label": first.label,
            "peer": channel.peer,
            "tag": channel.tag,
            "ranks": list(first.ranks),
            "kinds": self._kind_texts,
            "operations": self._operations,
            "failed": self._failed,
        }


def _what(call: Call) -> str:
    """Return the properties that must be equal on all ranks that take part."""
    if call.way == CREATE:
        # each rank creating a group of itself alone violates torch's rule, but works
        alone = len(call.ranks) == 1
        return f"{call.kind} of {'one rank' if alone else plural_ranks(call.ranks)}"
    if call.kind.startswith(_UNEVEN):
        return call.kind
    shapes = ", ".join(str(list(shape)) for shape in call.shapes)
    tensors = f"{call.dtype}{shapes}" if call.tensors == 1 else f"{call.tensors} {call.dtype}"
    if call.way != COLLECTIVE:
        return tensors
    root = "" if call.root is None else f" of rank {call.root}"
    # the shapes of a collective may differ between ranks, its size may not
    return f"{call.kind}{root} of {call.dtype}, {call.nbytes} B"


def _counted(creation: Call) -> bool:
    """Return whether every rank must take part: torch names such groups by a counter."""
    return creation.kind == "new_group" and creation.group.rpartition(":")[0].isdigit()


def _words(call: Call) -> str:
    kind = {SEND: "isend", RECV: "irecv"}.get(call.way, call.kind)
    peer = "" if call.peer is None else f" {'to' if call.way == SEND else 'from'} rank {call.peer}"
    shapes = ", ".join(str(list(shape)) for shape in call.shapes)
    return f"{kind} of {call.dtype}{shapes}{peer} ({call.label}, tag {call.tag})"


def _sites(call: Call) -> tuple[Site, ...]:
    return (call.site,) if call.via is None else (call.site, call.via)
