"""Ranks that have recorded something, as real ranks do, for the tests of the page."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_pprank.oplog.file import (
    COLLECTIVE,
    RECV,
    SEND,
    Call,
    Ledger,
    Site,
    State,
    ledger_file,
    read_ledger,
)
from pytest_pprank.oplog.record.writer import EncodedCall, Entry, LedgerWriter
from pytest_pprank.report.page.build import About
from pytest_pprank.report.page.parts import RunPart, TestPart, anchor_of, packed
from pytest_pprank.report.page.timeline import Printed, Timeline, timeline_of
from pytest_pprank.topology import Sizes
from pytest_pprank.trace.file import Trace, trace_file
from pytest_pprank.trace.read.read import parse, read_raw
from pytest_pprank.trace.record.recorder import TraceRecorder
from pytest_pprank.trace.record.ring import RingWriter

SITE = Site("/code/test_it.py", 20, "test_it")
ABOUT = About(began=0.0, seconds=1.5, command=["pytest", "-p", "pytest_pprank"])
RUN = RunPart(tally="1 worker group")


class Rank:
    """One rank: records events and operations, and is read as the controller does."""

    def __init__(self, folder: Path, rank: int, world: int = 2) -> None:
        self._folder, self.rank, self._world = folder, rank, world
        self.trace = TraceRecorder(RingWriter(trace_file(folder, rank), rank))
        self._ledger = LedgerWriter(ledger_file(folder, rank), rank)
        self._ledger.tee = self.trace.operation
        self.trace.begin_test(1)
        self._ledger.begin_test(1)

    def issue(self, kind: str, way: str, peer: int | None = None) -> Entry:
        call = Call(
            kind,
            way,
            "0:1234",
            "default group",
            tuple(range(self._world)),
            "gloo",
            peer=peer,
            shapes=((4,),),
            tensors=1,
            dtype="float32",
            nbytes=16,
            site=SITE,
            thread="MainThread",
        )
        return self._ledger.issue(EncodedCall(call), State.WAITING)

    def send(self, peer: int) -> Entry:
        return self.issue("send", SEND, peer)

    def recv(self, peer: int) -> Entry:
        return self.issue("recv", RECV, peer)

    def meet(self) -> Entry:
        return self.issue("all_reduce", COLLECTIVE)

    def complete(self, entry: Entry) -> None:
        self._ledger.set_state(entry, State.COMPLETED)

    def read(self) -> Trace:
        return parse(self.rank, read_raw(trace_file(self._folder, self.rank)))

    def ledger(self) -> Ledger:
        return read_ledger(ledger_file(self._folder, self.rank))


def timeline(
    *ranks: Rank,
    printed: tuple[Printed, ...] = (),
    until: float = 0.0,
    sizes: Sizes | None = None,
) -> Timeline:
    """Return the timeline of ranks, by default of one role."""
    traces = {rank.rank: rank.read() for rank in ranks}
    ledgers = {rank.rank: rank.ledger() for rank in ranks}
    return timeline_of(sizes or Sizes(len(ranks)), traces, ledgers, printed, until)


def part(
    nodeid: str = "test_it.py::test_it[pp2]", of: Timeline | None = None, **more: object
) -> TestPart:
    """Return a failed test."""
    values: dict[str, object] = {
        "nodeid": nodeid,
        "anchor": anchor_of(nodeid),
        "topology": "pp=2 device=cpu",
        "ranks": 2,
        "outcome": "failed",
        "verdict": "failed",
        "seconds": 0.5,
        "started": 1.0,
        "timeline": packed(of) if of is not None else b"",
        "events": len(of.events) if of is not None else 0,
        **more,
    }
    return TestPart(**values)  # type: ignore[arg-type]


def plain_json(value: object) -> object:
    """Return a value as it is after JSON."""
    return json.loads(json.dumps(value))
