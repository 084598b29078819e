"""The timeline of a test: the events of all ranks in lanes, and what links them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pytest_pprank.oplog.file import COLLECTIVE, CREATE, STORE, Ledger, Operation, State
from pytest_pprank.oplog.read import text as words
from pytest_pprank.oplog.read.text import describe
from pytest_pprank.oplog.read.wait_graph import unmet
from pytest_pprank.report.page.bands import (
    BAND_OF,
    BANDS,
    MESSAGE,
    STORE_WAIT,
    rows,
)
from pytest_pprank.report.page.bands import COLLECTIVE as COLLECTIVE_KIND
from pytest_pprank.report.page.links import Link, links_of
from pytest_pprank.report.page.plain import plain
from pytest_pprank.topology import Sizes
from pytest_pprank.trace.file import OUTPUT, Detail, Trace, TraceEvent

_STATES = {
    State.ISSUED: "issued, never waited for",
    State.WAITING: "waiting",
    State.QUEUED: "queued on the device",
    State.RUNNING: "on the device, not done",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.DROPPED: "its handle was dropped",
}


@dataclass(frozen=True)
class Lane:
    """A rank, as its lane is titled; `note`: what its trace lacks, in words."""

    rank: int
    title: str
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """An event as the page has it. Times are seconds since the beginning of the timeline.

    `end` is None for what never ended. `row`: in its band (page.bands).
    """

    lane: int
    kind: str
    name: str
    start: float
    end: float | None
    iteration: int | None = None
    thread: str = ""
    details: dict[str, Detail] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    row: int = 0


@dataclass(frozen=True)
class Missing:
    """An operation whose partner never came: the number of its event, and what lacks."""

    event: int
    ranks: tuple[int, ...]
    text: str
    lack: str


@dataclass(frozen=True)
class Timeline:
    """What all ranks did in one test. `links` and `unmet` refer to events by their numbers."""

    lanes: list[Lane]
    events: list[Shown]
    links: list[Link]
    unmet: list[Missing]
    began: float
    """When it begins, in seconds of the monotonic clock."""
    seconds: float
    bands: dict[str, list[str]]

    def as_data(self) -> dict[str, object]:
        """Return the timeline as JSON data."""
        return asdict(self)


@dataclass
class Printed:
    """What a rank has printed: when it began to arrive, the stream, and the text."""

    rank: int
    time: float
    stream: str
    text: str


def timeline_of(
    sizes: Sizes,
    traces: Mapping[int, Trace],
    ledgers: Mapping[int, Ledger],
    printed: Sequence[Printed] = (),
    until: float = 0.0,
    dead: Collection[int] = (),
) -> Timeline:
    """Build the timeline of a test of these sizes from the traces and ledgers of its ranks.

    `until`: when these were read; what had not ended then is drawn up to there.
    `dead`: the ranks that had died by then.
    """
    operations = {rank: _operations(traces[rank], ledgers.get(rank)) for rank in traces}
    given = sorted(_all_events(traces, operations, printed), key=lambda it: it[1].start)
    began = given[0][1].start if given else 0.0
    ends = [it.start if it.end is None else it.end for _, it, _ in given]
    if any(it.end is None for _, it, _ in given):
        ends.append(until)
    last = max(ends, default=began)
    number_of = {of: number for number, (_, _, of) in enumerate(given) if of is not None}
    events = _with_rows([_shown(rank, it, began) for rank, it, _ in given], last - began)
    lanes = [
        Lane(rank, _title(sizes, rank), _note(trace, rank in dead))
        for rank, trace in traces.items()
    ]
    missing = [
        Missing(
            number_of[each.rank, each.operation.number],
            each.missing,
            plain(describe(each.operation)),
            each.lack,
        )
        for each in unmet(dict(ledgers))
        if (each.rank, each.operation.number) in number_of
    ]
    links = list(links_of(operations, number_of, events, sizes))
    shown = {band: list(kinds) for band, kinds in BANDS.items()}
    return Timeline(lanes, events, links, missing, began, last - began, shown)


_Given = tuple[int, TraceEvent, tuple[int, int] | None]
"""A rank, its event, and (rank, number) of the operation that it is."""


def _all_events(
    traces: Mapping[int, Trace],
    operations: Mapping[int, Sequence[Operation]],
    printed: Sequence[Printed],
) -> Iterator[_Given]:
    for rank, trace in traces.items():
        yield from ((rank, event, None) for event in trace.events)
        for operation in operations[rank]:
            yield rank, _event_of(operation), (rank, operation.number)
    for each in printed:
        if each.rank in traces:
            first = next((line for line in each.text.splitlines() if line.strip()), "")
            details: dict[str, Detail] = {"stream": each.stream, "text": each.text}
            yield (
                each.rank,
                TraceEvent(0, OUTPUT, first, each.time, each.time, None, "", details),
                None,
            )


def _operations(trace: Trace, ledger: Ledger | None) -> list[Operation]:
    """Return the operations of this test: those that have ended from the trace, and the others."""
    found = {operation.number: operation for operation in trace.operations}
    for operation in ledger.operations if ledger is not None else ():
        if operation.serial == trace.serial or operation.pending:
            found[operation.number] = operation
    return sorted(found.values(), key=lambda operation: operation.start)


def _event_of(operation: Operation) -> TraceEvent:
    kind = MESSAGE
    if operation.way in (COLLECTIVE, CREATE):
        kind = COLLECTIVE_KIND
    elif operation.way == STORE:
        kind = STORE_WAIT
    details: dict[str, Detail] = {
        "state": _STATES[operation.state] + (f": {operation.error}" if operation.error else ""),
        "tensors": words.tensors(operation),
        "bytes": operation.nbytes or None,
        "tag": operation.tag or None,
        "root": operation.root,
        "detail": operation.detail,
        "group": words.group(operation),
        "backend": operation.backend,
    }
    told: dict[str, Detail] = {
        name: value for name, value in details.items() if value not in (None, "")
    }
    stack = tuple(site for site in (operation.site, operation.via) if site is not None)
    end = None if operation.pending else operation.end or operation.start
    name = words.name(operation)
    return TraceEvent(
        operation.number, kind, name, operation.start, end, None, operation.thread, told, stack
    )


def _shown(rank: int, event: TraceEvent, began: float) -> Shown:
    return Shown(
        lane=rank,
        kind=event.kind,
        name=plain(event.name),
        start=event.start - began,
        end=None if event.end is None else event.end - began,
        iteration=event.iteration,
        thread=event.thread,
        details={name: _plain(value) for name, value in event.details.items()},
        stack=[f"{site.file}:{site.line} in {site.function}" for site in event.stack],
    )


def _plain(value: Detail) -> Detail:
    if isinstance(value, str):
        return plain(value)
    return [plain(text) for text in value] if isinstance(value, list) else value


def _with_rows(events: list[Shown], last: float) -> list[Shown]:
    """Give each event its row, lane by lane and band by band."""
    groups: dict[tuple[int, str], list[int]] = {}
    for number, event in enumerate(events):
        groups.setdefault((event.lane, BAND_OF[event.kind]), []).append(number)
    placed = list(events)
    for numbers in groups.values():
        # what begins at once and lasts longer is drawn above
        numbers.sort(key=lambda n: (events[n].start, -_end(events[n], last)))
        spans = [(events[n].start, _end(events[n], last)) for n in numbers]
        for number, row in zip(numbers, rows(spans), strict=True):
            values = {**vars(events[number]), "row": row}
            placed[number] = Shown(**values)
    return placed


def _end(event: Shown, last: float) -> float:
    return max(last, event.start + 1e-9) if event.end is None else event.end


def _title(sizes: Sizes, rank: int) -> str:
    return sizes.rank_names[rank].replace(",", ":", 1)


def _note(trace: Trace, dead: bool) -> str:
    notes = ["died" if dead else "", trace.problem]
    if trace.lost:
        notes.append(f"{trace.lost} older records had to make room")
    if trace.faults:
        notes.append(f"{trace.faults} events could not be recorded: {trace.fault}")
    return "; ".join(filter(None, notes))
