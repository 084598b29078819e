"""The trace of a rank: readable from outside at any moment, however the rank has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_pprank.oplog.file import COLLECTIVE, RECV, Call, Site, State
from pytest_pprank.oplog.record.writer import EncodedCall, LedgerWriter
from pytest_pprank.trace.file import (
    FORWARD,
    LOG,
    SEGMENT_BYTES,
    SEGMENTS,
    Detail,
    Trace,
    trace_file,
)
from pytest_pprank.trace.read.read import parse, read_raw
from pytest_pprank.trace.record import trace
from pytest_pprank.trace.record.recorder import TraceRecorder
from pytest_pprank.trace.record.ring import RingWriter

STACK = (Site("/a/long/way/to/scheduler.py", 12, "run_batch"), Site("/t/test_it.py", 3, "test_it"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return trace_file(tmp_path, 1)


@pytest.fixture
def recorder(path: Path) -> TraceRecorder:
    made = TraceRecorder(RingWriter(path, 1))
    made.begin_test(7)
    return made


def read(path: Path) -> Trace:
    return parse(1, read_raw(path))


def names(path: Path) -> list[str]:
    return [event.name for event in read(path).events]


def test_reads_back_what_was_recorded(recorder: TraceRecorder, path: Path) -> None:
    details: dict[str, Detail] = {
        "mode": "extend",
        "requests": ["a", "b"],
        "slot": 3,
        "none": None,
    }
    recorder.event(FORWARD, "extend a, b", details, STACK, iteration=5)
    found = read(path)
    assert (found.rank, found.serial, found.lost, found.faults, found.problem) == (1, 7, 0, 0, "")
    (event,) = found.events
    assert (event.kind, event.name, event.iteration) == (FORWARD, "extend a, b", 5)
    assert event.details == details
    assert event.end == event.start > 0
    assert event.thread == "MainThread"
    assert event.site == Site("way/to/scheduler.py", 12, "run_batch")
    assert event.stack[1].function == "test_it"


def test_a_beginning_gets_its_end_and_further_details(recorder: TraceRecorder, path: Path) -> None:
    number = recorder.begin(FORWARD, "forward", {"mode": "decode"})
    (open_one,) = read(path).events
    assert open_one.end is None
    recorder.event(LOG, "between")
    recorder.end(number, {"raised": "ValueError"})
    done, between = read(path).events
    assert done.end is not None
    assert done.start <= between.start <= done.end
    assert done.details == {"mode": "decode", "raised": "ValueError"}


def test_each_test_begins_with_an_empty_ring(recorder: TraceRecorder, path: Path) -> None:
    for number in range(20):
        recorder.event(LOG, f"old {number:02}")
    recorder.begin_test(8)
    assert read(path).events == ()
    recorder.event(LOG, "new 00")  # as long as an old one, which so begins where it ends
    found = read(path)
    assert (found.serial, [event.name for event in found.events], found.lost) == (8, ["new 00"], 0)


def test_the_newest_events_replace_the_oldest(recorder: TraceRecorder, path: Path) -> None:
    size = 9_000  # bytes of one event
    each = [f"{number} ".ljust(150, "x") for number in range(size // 150)]
    many = SEGMENTS * SEGMENT_BYTES // size * 2
    for number in range(many):
        recorder.event(LOG, f"{number:06}", {"text": each})
    found = read(path)
    kept = [int(event.name) for event in found.events]
    assert kept == list(range(kept[0], many))
    assert found.lost == kept[0] > 0
    assert len(kept) > many / 2 * 0.9
    assert found.faults == 0


def test_what_does_not_fit_is_shortened(recorder: TraceRecorder, path: Path) -> None:
    recorder.event(LOG, "n" * 5000, {"text": "x" * 100_000, "many": ["y" * 900] * 1000})
    recorder.event(LOG, "all long", {str(number): "x" * 2000 for number in range(99)})
    first, second = read(path).events
    assert len(first.name) == 200
    text, many = first.details["text"], first.details["many"]
    assert isinstance(text, str)
    assert text.endswith("(100000 characters)")
    assert isinstance(many, list)
    assert many[-1] == "... 936 more"
    assert second.details == {"details": "left out: too long"}


@pytest.mark.parametrize("text", ["</script>", '"', "\x1b[31m", "\ud800", "\0", "é\u2028", "\\"])
def test_any_text_is_kept(recorder: TraceRecorder, path: Path, text: str) -> None:
    recorder.event(LOG, text, {text: [text]}, (Site(text, 1, text),))
    (event,) = read(path).events
    assert (event.name, event.details, event.site.function) == (text, {text: [text]}, text)


def test_a_value_that_json_does_not_know_is_shown_by_its_repr(
    recorder: TraceRecorder, path: Path
) -> None:
    recorder.event(LOG, "odd", {"value": {1, 2}})  # type: ignore[dict-item]
    assert read(path).events[0].details == {"value": "{1, 2}"}


def test_a_failure_is_counted_and_reaches_nobody(recorder: TraceRecorder, path: Path) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise TypeError("no words for it")

    recorder.event(LOG, "odd", {"value": Odd()})  # type: ignore[dict-item]
    recorder.event(LOG, "fine")
    found = read(path)
    assert (found.faults, [event.name for event in found.events]) == (1, ["fine"])
    assert found.fault == "TypeError: no words for it"


def test_a_half_written_record_is_left_out(recorder: TraceRecorder, path: Path) -> None:
    recorder.event(LOG, "whole")
    before = read_raw(path)
    recorder.event(LOG, "half")
    after = read_raw(path)
    changed = max(at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
    torn = after[: changed - 3] + before[changed - 3 :]
    assert [event.name for event in parse(1, torn).events] == ["whole"]


def test_threads_share_a_ring(recorder: TraceRecorder, path: Path) -> None:
    def work(who: int) -> None:
        for number in range(200):
            recorder.event(LOG, f"{who}-{number}")

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = names(path)
    assert sorted(found) == sorted(f"{who}-{number}" for who in range(4) for number in range(200))
    for who in range(4):
        own = [int(name.partition("-")[2]) for name in found if name.startswith(f"{who}-")]
        assert own == sorted(own)


def test_a_forked_child_writes_nothing(recorder: TraceRecorder, path: Path) -> None:
    child = os.fork()
    if child == 0:
        for number in range(3):
            recorder.event(LOG, f"child {number}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    recorder.event(LOG, "rank  0")  # as long as one of the child, which would be behind it
    assert names(path) == ["rank  0"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_pprank.trace.record.recorder import TraceRecorder
from pytest_pprank.trace.record.ring import RingWriter
recorder = TraceRecorder(RingWriter(Path(sys.argv[1]), 1))
recorder.begin_test(1)
recorder.event("log", "before")
recorder.begin("forward", "in the middle of it")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_survives_the_death_of_its_rank(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    before, during = read(path).events
    assert (before.name, during.name, during.end) == ("before", "in the middle of it", None)


@pytest.mark.parametrize("raw", [b"", b"\0" * 100, b"\xff" * 9_000_000])
def test_what_is_no_trace_is_a_problem_and_no_error(raw: bytes) -> None:
    assert parse(3, raw) == Trace(3, problem="this rank has left no trace")


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    assert parse(0, read_raw(tmp_path / "none")).problem


def call(kind: str, way: str) -> EncodedCall:
    return EncodedCall(
        Call(kind, way, "0:1", "default group", (0, 1), "gloo", peer=0 if way == RECV else None)
    )


def test_operations_that_have_ended_come_from_the_ledger(
    recorder: TraceRecorder, path: Path, tmp_path: Path
) -> None:
    writer = LedgerWriter(tmp_path / "ledger", 1)
    writer.tee = recorder.operation
    writer.begin_test(7)
    done = writer.issue(call("recv", RECV), State.WAITING)
    writer.issue(call("recv", RECV), State.WAITING)
    failed = writer.issue(call("all_reduce", COLLECTIVE), State.WAITING)
    writer.set_state(done, State.COMPLETED)
    writer.set_state(failed, State.FAILED, error="peer gone")
    first, second = read(path).operations
    assert (first.kind, first.state, first.turn, first.serial) == ("recv", State.COMPLETED, 1, 7)
    assert first.end >= first.start > 0
    assert (second.kind, second.state, second.error) == ("all_reduce", State.FAILED, "peer gone")


def test_more_operations_are_kept_than_the_ledger_has_room_for(
    recorder: TraceRecorder, path: Path, tmp_path: Path
) -> None:
    writer = LedgerWriter(tmp_path / "ledger", 1)
    writer.tee = recorder.operation
    writer.begin_test(7)
    for _ in range(2000):
        writer.set_state(writer.issue(call("recv", RECV), State.WAITING), State.COMPLETED)
    assert [operation.turn for operation in read(path).operations] == list(range(1, 2001))


@pytest.fixture
def of_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trace of this process, as a rank has one."""
    monkeypatch.setattr(trace, "_recorder", None)
    monkeypatch.setattr(trace, "_of_sglang", False)
    trace.start_trace(tmp_path, 1, sglang=False)
    return trace_file(tmp_path, 1)


def test_without_a_trace_nothing_is_recorded(tmp_path: Path) -> None:
    trace.note(LOG, "nowhere")
    with trace.noted(LOG, "nowhere"):
        pass
    assert trace.recorder() is None
    assert list(tmp_path.iterdir()) == []


def test_a_block_is_noted_with_what_it_raises(of_process: Path) -> None:
    trace.begin_test(1)

    def fail() -> None:
        raise LookupError("not there")

    with trace.noted(LOG, "good"):
        pass
    with pytest.raises(LookupError), trace.noted(LOG, "bad"):
        fail()
    good, bad = read(of_process).events
    assert good.end is not None
    assert bad.details == {"raised": "LookupError: not there"}


def test_without_disk_space_there_is_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(trace, "_recorder", None)
    monkeypatch.setattr(os, "posix_fallocate", full)
    trace.start_trace(tmp_path, 1, sglang=False)
    assert trace.recorder() is None
    assert list(tmp_path.iterdir()) == []
