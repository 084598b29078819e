"""The trace of a run in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

A test is a process, and each row of a band of a rank is a thread: slices of one thread must not
overlap unless one contains the other. Messages, collectives and transfers of KV are flows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pytest_pprank.report.page.bands import BAND_OF, BANDS
from pytest_pprank.report.page.links import MESSAGE_LINK, Link
from pytest_pprank.report.page.parts import TestPart, unpacked
from pytest_pprank.report.page.timeline import Shown, Timeline

_LEAST_US = 0.1
"""The least length of a slice, in microseconds: flows begin and end inside of slices."""


def write_trace(path: Path, tests: Iterable[TestPart]) -> None:
    """Write the trace of all tests that have a timeline; raises OSError."""
    first = True
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[')
        for event in trace_events(tests):
            file.write("\n" if first else ",\n")
            file.write(json.dumps(event, separators=(",", ":")))
            first = False
        file.write("\n]}\n")


def trace_events(tests: Iterable[TestPart]) -> Iterator[dict[str, object]]:
    """Yield the events of all tests; times are microseconds since the first test began."""
    origin: float | None = None
    flows = 0
    for pid, test in enumerate(tests, start=1):
        if not test.timeline:
            continue
        timeline = unpacked(test.timeline)
        origin = timeline.began if origin is None else origin
        offset = (timeline.began - origin) * 1e6
        yield _named(pid, 0, "process_name", test.nodeid)
        yield {**_named(pid, 0, "process_sort_index", ""), "args": {"sort_index": pid}}
        threads = _threads(timeline)
        yield from _thread_names(pid, timeline, threads)
        linked = {end for link in timeline.links for end in (link.source, link.target)}
        for number, event in enumerate(timeline.events):
            place = {"pid": pid, "tid": threads[_row(event)]}
            yield _slice(event, place, offset, timeline.seconds, flows=number in linked)
        for link in timeline.links:
            flows += 1
            yield from _flow(pid, timeline, link, offset, flows, threads)


_Row = tuple[int, int, int]
"""Lane, number of the band, and row."""


def _row(event: Shown) -> _Row:
    band = list(BANDS).index(BAND_OF[event.kind])
    return event.lane, band, event.row


def _threads(timeline: Timeline) -> dict[_Row, int]:
    """Return a thread id for each row that is used."""
    used = sorted({_row(event) for event in timeline.events})
    return {row: tid for tid, row in enumerate(used, start=1)}


def _thread_names(
    pid: int, timeline: Timeline, threads: dict[_Row, int]
) -> Iterator[dict[str, object]]:
    titles = {lane.rank: lane.title for lane in timeline.lanes}
    for (lane, band, _), tid in threads.items():
        yield _named(pid, tid, "thread_name", f"{titles[lane]}, {list(BANDS)[band]}")
        yield {**_named(pid, tid, "thread_sort_index", ""), "args": {"sort_index": tid}}


def _named(pid: int, tid: int, what: str, name: str) -> dict[str, object]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}}


def _slice(
    event: Shown, place: dict[str, int], offset: float, seconds: float, *, flows: bool
) -> dict[str, object]:
    """Return a slice, or an instant for a moment that no flow begins or ends at."""
    args: dict[str, object] = {**event.details}
    if event.iteration is not None:
        args["iteration"] = event.iteration
    if event.stack:
        args["stack"] = event.stack
    if event.end is None:
        args["ended"] = "never"
    made: dict[str, object] = {
        "name": event.name,
        "cat": event.kind,
        **place,
        "ts": _us(event.start, offset),
        "args": args,
    }
    if event.end == event.start and not flows:
        return {**made, "ph": "i", "s": "t"}
    return {**made, "ph": "X", "dur": _duration(event, seconds)}


def _duration(event: Shown, seconds: float) -> float:
    end = seconds if event.end is None else event.end
    return round(max((end - event.start) * 1e6, _LEAST_US), 3)


def _flow(
    pid: int,
    timeline: Timeline,
    link: Link,
    offset: float,
    number: int,
    threads: dict[_Row, int],
) -> Iterator[dict[str, object]]:
    source, target = timeline.events[link.source], timeline.events[link.target]
    shared: dict[str, object] = {"name": link.kind, "cat": link.kind, "id": number, "pid": pid}
    arrives = _us(target.start, offset)
    if link.kind == MESSAGE_LINK and target.end is not None:
        # inside of the slice, near its end
        arrives = round(arrives + 0.9 * _duration(target, timeline.seconds), 3)
    begin = min(_us(source.start, offset), arrives)
    yield {**shared, "ph": "s", "tid": threads[_row(source)], "ts": begin}
    yield {**shared, "ph": "f", "bp": "e", "tid": threads[_row(target)], "ts": arrives}


def _us(seconds: float, offset: float) -> float:
    return round(seconds * 1e6 + offset, 3)
