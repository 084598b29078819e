"""trace.json is in the Trace Event Format, and Perfetto can draw all of it."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from page_scene import Rank, part, timeline

from pytest_pprank.report.page.perfetto import trace_events, write_trace
from pytest_pprank.topology import Sizes
from pytest_pprank.trace.file import LOG, PHASE, TRANSFER

Event = dict[str, Any]


@pytest.fixture
def written(tmp_path: Path) -> list[Event]:
    """The events of two tests, as they are in the file."""
    first, second = Rank(tmp_path, 0), Rank(tmp_path, 1)
    for rank in (first, second):
        rank.trace.begin(PHASE, "call")
    pending = [first.send(1) for _ in range(5)]
    for entry in pending:
        second.complete(second.recv(0))
        first.complete(entry)
    for rank in (second, first):
        rank.complete(rank.meet())
    first.trace.event(TRANSFER, "send KV", {"room": 7, "tokens": 16}, iteration=2)
    second.trace.event(TRANSFER, "done", {"room": 7, "status": "Success"})
    first.trace.event(LOG, 'text with " and </script> and \ud800')
    first.recv(1)
    made = timeline(first, second, until=time.monotonic(), sizes=Sizes(1, 1))
    tests = [part(of=made), part("test_it.py::other"), part("test_it.py::third", of=made)]
    write_trace(tmp_path / "trace.json", tests)
    whole = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert whole["displayTimeUnit"] == "ms"
    found: list[Event] = whole["traceEvents"]
    return found


def of(events: list[Event], *phases: str) -> list[Event]:
    return [event for event in events if event["ph"] in phases]


def test_each_event_has_what_its_phase_asks_for(written: list[Event]) -> None:
    needed = {
        "M": {"args"},
        "X": {"ts", "dur", "cat", "args"},
        "i": {"ts", "s", "cat", "args"},
        "s": {"ts", "id", "cat"},
        "f": {"ts", "id", "cat", "bp"},
    }
    assert {event["ph"] for event in written} == set(needed)
    for event in written:
        assert needed[event["ph"]] | {"name", "pid", "tid"} <= event.keys()
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        assert event.get("ts", 0) >= 0
    assert all(event["dur"] > 0 for event in of(written, "X"))
    assert {event["s"] for event in of(written, "i")} == {"t"}


def test_each_flow_has_two_ends_that_are_inside_of_slices(written: list[Event]) -> None:
    begins = {event["id"]: event for event in of(written, "s")}
    ends = {event["id"]: event for event in of(written, "f")}
    assert begins.keys() == ends.keys()
    assert len(begins) == len(of(written, "s")) == 2 * (5 + 1 + 1)
    slices: dict[tuple[int, int], list[Event]] = {}
    for event in of(written, "X"):
        slices.setdefault((event["pid"], event["tid"]), []).append(event)
    for event in of(written, "s", "f"):
        around = slices[event["pid"], event["tid"]]
        assert any(it["ts"] <= event["ts"] < it["ts"] + it["dur"] for it in around), event
    for number, begin in begins.items():
        end = ends[number]
        assert begin["ts"] <= end["ts"]
        assert (begin["name"], begin["cat"]) == (end["name"], end["cat"])
        assert begin["tid"] != end["tid"]
        assert end["bp"] == "e"


def test_slices_of_one_thread_do_not_overlap(written: list[Event]) -> None:
    threads: dict[tuple[int, int], list[Event]] = {}
    for event in of(written, "X"):
        threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for events in threads.values():
        events.sort(key=lambda event: event["ts"])
        for before, after in pairwise(events):
            # times are written to a nanosecond
            assert before["ts"] + before["dur"] <= after["ts"] + 0.002


def test_tests_and_ranks_have_names(written: list[Event]) -> None:
    names = {
        (event["name"], event["pid"], event["args"]["name"])
        for event in of(written, "M")
        if "name" in event["args"]
    }
    assert ("process_name", 1, "test_it.py::test_it[pp2]") in names
    assert ("process_name", 3, "test_it.py::third") in names
    assert not any(pid == 2 for _, pid, _ in names), "a test without a timeline"
    threads = {name for what, pid, name in names if what == "thread_name" and pid == 1}
    assert {
        "rank 0: prefill stage 0 of 1, test",
        "rank 1: decode stage 0 of 1, messages",
    } <= threads


def test_what_never_ended_says_so(written: list[Event]) -> None:
    never = [event for event in of(written, "X") if event["args"].get("ended") == "never"]
    assert {event["name"] for event in never} == {"call", "recv from rank 1"}


def test_details_and_iterations_are_arguments(written: list[Event]) -> None:
    sent = next(event for event in written if event["name"] == "send KV")
    assert sent["args"] == {"room": 7, "tokens": 16, "iteration": 2}
    received = next(event for event in written if event["name"] == "recv from rank 0")
    assert received["args"]["stack"] == ["/code/test_it.py:20 in test_it"]


def test_times_of_several_tests_have_one_origin(tmp_path: Path) -> None:
    rank = Rank(tmp_path, 0, world=1)
    rank.trace.event(LOG, "first")
    first = timeline(rank)
    rank.trace.begin_test(2)
    rank.trace.event(LOG, "second")
    second = timeline(rank)
    events = list(trace_events([part(of=first), part("test_it.py::second", of=second)]))
    times = {event["name"]: event["ts"] for event in of(events, "i")}
    assert times["first"] == 0
    assert times["second"] == pytest.approx((second.began - first.began) * 1e6, abs=0.01)


def test_a_run_without_timelines_has_an_empty_trace(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", [part()])
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []
