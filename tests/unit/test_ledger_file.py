"""The ledger file: readable from outside at any moment, whatever state it is in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pytest_pprank.oplog.file import (
    COLLECTIVE,
    COUNTERS,
    FILE_BYTES,
    FIRST_OPERATION,
    HEAD_BYTES,
    OPERATION_BYTES,
    OPERATIONS,
    RECV,
    SEND,
    STORE,
    Call,
    Channel,
    Site,
    State,
    ledger_file,
    read_ledger,
)
from pytest_pprank.oplog.record.flight_recorder import still_running
from pytest_pprank.oplog.record.writer import EncodedCall, LedgerWriter


def call(kind: str = "recv", way: str = RECV, **changes: Any) -> EncodedCall:
    fields = {
        "group": "0:1234",
        "label": "default group",
        "ranks": (0, 1),
        "backend": "gloo",
        "peer": None if way == COLLECTIVE else 0,
        "shapes": ((4, 8),),
        "tensors": 1,
        "dtype": "float32",
        "nbytes": 128,
        "site": Site("/code/scheduler.py", 990, "_recv"),
        "thread": "MainThread",
    }
    return EncodedCall(Call(kind, way, **{**fields, **changes}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return ledger_file(tmp_path, 1)


@pytest.fixture
def writer(path: Path) -> LedgerWriter:
    writer = LedgerWriter(path, 1)
    writer.begin_test(7)
    return writer


def states(path: Path) -> list[tuple[int, State]]:
    return [(operation.number, operation.state) for operation in read_ledger(path).operations]


def test_reads_back_what_was_written(writer: LedgerWriter, path: Path) -> None:
    via = Site("/code/plumbing.py", 3, "send_all")
    writer.issue(call(tag=5, root=1, detail="SUM", via=via), State.WAITING)
    ledger = read_ledger(path)
    (operation,) = ledger.operations
    assert (ledger.rank, ledger.pid, ledger.serial, ledger.problem) == (1, os.getpid(), 7, "")
    assert ledger.threads == ("MainThread",)
    assert ledger.complete
    assert (operation.kind, operation.peer, operation.tag, operation.root) == ("recv", 0, 5, 1)
    assert operation.shapes == ((4, 8),)
    assert operation.ranks == (0, 1)
    assert operation.site == Site("/code/scheduler.py", 990, "_recv")
    assert operation.via == via
    assert (operation.detail, operation.nbytes, operation.serial) == ("SUM", 128, 7)
    assert operation.start > 0
    assert operation.end == 0
    assert ledger.waiting == ledger.pending == (operation,)


def test_follows_an_operation_to_its_end(writer: LedgerWriter, path: Path) -> None:
    entry = writer.issue(call(), State.ISSUED)
    assert states(path) == [(1, State.ISSUED)]
    writer.set_state(entry, State.WAITING, "other thread")
    (operation,) = read_ledger(path).operations
    assert (operation.state, operation.thread) == (State.WAITING, "other thread")
    assert read_ledger(path).threads == ("MainThread", "other thread")
    writer.set_state(entry, State.FAILED, error="connection closed")
    (operation,) = read_ledger(path).operations
    assert (operation.state, operation.error) == (State.FAILED, "connection closed")
    assert operation.end >= operation.start


def test_what_is_done_stays_done(writer: LedgerWriter, path: Path) -> None:
    entry = writer.issue(call(), State.ISSUED)
    writer.set_state(entry, State.COMPLETED)
    writer.set_state(entry, State.WAITING)
    assert states(path) == [(1, State.COMPLETED)]


def test_counts_channels_since_the_beginning_and_turns_since_the_test_began(
    writer: LedgerWriter, path: Path
) -> None:
    for _ in range(3):
        writer.issue(call(), State.COMPLETED)
    writer.begin_test(8)
    writer.issue(call(), State.WAITING)
    writer.issue(call("all_reduce", COLLECTIVE), State.WAITING)
    ledger = read_ledger(path)
    recv, collective = ledger.waiting
    assert (recv.turn, recv.sequence, recv.serial) == (1, 4, 8)
    assert (collective.turn, collective.sequence) == (1, 1)
    assert ledger.count(recv.channel) == 4
    assert ledger.count(Channel(SEND, "0:1234", 0)) == 0


def test_nccl_pairs_messages_without_tags(writer: LedgerWriter, path: Path) -> None:
    for tag in (1, 2):
        writer.issue(call(backend="nccl", tag=tag), State.QUEUED)
    assert [operation.sequence for operation in read_ledger(path).operations] == [1, 2]


def test_what_was_refused_does_not_count(writer: LedgerWriter, path: Path) -> None:
    writer.refuse(writer.issue(call(), State.WAITING), "wrong type")
    writer.issue(call(), State.WAITING)
    refused, operation = read_ledger(path).operations
    assert (refused.state, refused.error, refused.sequence) == (State.FAILED, "wrong type", 0)
    assert operation.sequence == 1
    assert read_ledger(path).count(operation.channel) == 1


def test_a_new_group_of_the_same_name_begins_at_one(writer: LedgerWriter, path: Path) -> None:
    writer.issue(call(), State.COMPLETED)
    writer.forget_group("0:1234")
    assert read_ledger(path).counts == {}
    writer.issue(call(), State.WAITING)
    assert read_ledger(path).waiting[0].sequence == 1


def test_waits_for_a_store_do_not_make_a_thread_count(writer: LedgerWriter, path: Path) -> None:
    writer.issue(call("store.get", STORE, peer=None, thread="heartbeat"), State.WAITING)
    assert read_ledger(path).threads == ()


def test_keeps_all_pending_and_the_last_finished(writer: LedgerWriter, path: Path) -> None:
    leaked = writer.issue(call(), State.ISSUED)
    for _ in range(3 * OPERATIONS):
        writer.set_state(writer.issue(call(), State.WAITING), State.COMPLETED)
    ledger = read_ledger(path)
    assert [operation.number for operation in ledger.pending] == [leaked.number]
    numbers = [operation.number for operation in ledger.operations[1:]]
    assert numbers == list(range(2 * OPERATIONS + 3, 3 * OPERATIONS + 2))
    assert ledger.complete
    writer.set_state(leaked, State.COMPLETED)
    assert read_ledger(path).pending == ()


def test_tells_how_many_pending_ones_it_has_no_room_for(writer: LedgerWriter, path: Path) -> None:
    entries = [writer.issue(call(), State.ISSUED) for _ in range(OPERATIONS + 3)]
    ledger = read_ledger(path)
    assert (len(ledger.pending), ledger.unrecorded, ledger.complete) == (OPERATIONS, 3, False)
    for entry in entries:
        writer.set_state(entry, State.COMPLETED)
    writer.issue(call(), State.WAITING)
    assert len(read_ledger(path).waiting) == 1


def test_tells_that_there_are_more_channels_than_it_counts(
    writer: LedgerWriter, path: Path
) -> None:
    for tag in range(COUNTERS):
        writer.set_state(writer.issue(call(tag=tag), State.ISSUED), State.COMPLETED)
    assert read_ledger(path).complete
    writer.issue(call(tag=COUNTERS), State.ISSUED)
    ledger = read_ledger(path)
    assert (ledger.uncounted, ledger.complete) == (True, False)
    assert len(ledger.counts) == COUNTERS


def test_long_parts_are_cut_and_the_rest_is_kept(writer: LedgerWriter, path: Path) -> None:
    huge = Site("/x" * 80, 1, "é" * 60)
    shapes = ((123456789,) * 30,) * 4
    ranks = tuple(range(400))
    writer.issue(call(shapes=shapes, site=huge, via=huge, ranks=ranks), State.WAITING)
    writer.issue(call(group="g" * 5000, label="\udcff" * 500), State.WAITING)
    first, second = read_ledger(path).operations
    assert (first.kind, first.nbytes, first.site) == ("recv", 128, huge)
    assert (second.kind, second.peer) == ("recv", 0)
    assert read_ledger(path).torn == 0


def test_what_a_device_still_does_is_found_from_the_end(writer: LedgerWriter, path: Path) -> None:
    entries = [writer.issue(call(backend="nccl", group="pp:12~2"), State.ISSUED) for _ in range(4)]
    for entry in entries:
        writer.set_state(entry, State.QUEUED)
    asynchronous = writer.issue(call(backend="nccl", group="pp:12~2"), State.ISSUED)
    writer.issue(call(backend="nccl", group="p:12"), State.QUEUED)
    writer.issue(call(), State.ISSUED)
    writer.set_running({"pp": [False, False, True, True], "unknown": [True]})
    assert [state for _, state in states(path)] == [
        State.QUEUED,
        State.COMPLETED,
        State.COMPLETED,
        State.RUNNING,
        State.ISSUED,
        State.QUEUED,
        State.ISSUED,
    ]
    assert len(read_ledger(path).pending) == 3
    writer.set_running({"pp": [False, False]})
    assert [state for _, state in states(path)][3:5] == [State.COMPLETED] * 2
    assert asynchronous.state is State.COMPLETED


def record(name: str, state: str, p2p: bool = False, group: str = "0") -> dict[str, Any]:
    return {"profiling_name": name, "state": state, "is_p2p": p2p, "process_group": [group, "x"]}


def test_a_flight_record_tells_what_still_runs() -> None:
    """The format is that of torch 2.11 on two H200s, where only the last of a batch has events."""
    entries = [
        record("nccl:all_reduce", "completed"),
        record("nccl:send 0->1", "scheduled", p2p=True),
        record("nccl:recv 0<-1", "scheduled", p2p=True),
        record("nccl:coalesced", "completed"),
        record("nccl:recv 0<-1", "completed", p2p=True),
        record("nccl:all_reduce", "started", group="1"),
        record("nccl:send 0->1", "scheduled", p2p=True),
        record("nccl:recv 0<-1", "scheduled", p2p=True),
        record("nccl:coalesced", "scheduled"),
    ]
    dump = json.dumps({"entries": entries}).encode()
    assert still_running(dump) == {"0": [False] * 4 + [True] * 2, "1": [True]}


def test_a_missing_file_is_a_problem_in_words(tmp_path: Path) -> None:
    ledger = read_ledger(tmp_path / "none")
    assert "No such file" in ledger.problem
    assert not ledger.complete


@pytest.mark.parametrize("garbage", ["nothing", "one byte", "zeros", "ones", "anything"])
def test_garbage_is_a_problem_in_words(path: Path, garbage: str) -> None:
    contents = {
        "nothing": b"",
        "one byte": b"x",
        "zeros": bytes(FILE_BYTES),
        "ones": b"\xff" * FILE_BYTES,
        "anything": os.urandom(FILE_BYTES),
    }
    path.write_bytes(contents[garbage])
    assert "head" in read_ledger(path).problem


def test_a_folder_is_a_problem_in_words(tmp_path: Path) -> None:
    assert read_ledger(tmp_path).problem


@pytest.mark.parametrize("cut", [HEAD_BYTES, FIRST_OPERATION, FIRST_OPERATION + 100])
def test_a_file_cut_short_gives_what_is_left(writer: LedgerWriter, path: Path, cut: int) -> None:
    writer.issue(call(), State.WAITING)
    os.truncate(path, cut)
    ledger = read_ledger(path)
    assert (ledger.rank, ledger.operations) == (1, ())


@pytest.mark.parametrize("offset", [3, 12, 40, 150])
def test_a_torn_record_is_left_out_and_counted(
    writer: LedgerWriter, path: Path, offset: int
) -> None:
    for _ in range(3):
        writer.issue(call(), State.WAITING)
    with path.open("r+b") as file:
        file.seek(FIRST_OPERATION + OPERATION_BYTES + offset)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x55]))
    ledger = read_ledger(path)
    assert [operation.number for operation in ledger.operations] == [1, 3]
    assert (ledger.torn, ledger.complete) == (1, False)


def test_errors_of_the_recorder_are_told(writer: LedgerWriter, path: Path) -> None:
    writer.fault("KeyError: 3")
    ledger = read_ledger(path)
    assert (ledger.unrecorded, ledger.fault, ledger.complete) == (1, "KeyError: 3", False)


def test_threads_write_while_somebody_reads(writer: LedgerWriter, path: Path) -> None:
    def work(name: str) -> None:
        for _ in range(200):
            entry = writer.issue(call(thread=name), State.ISSUED)
            writer.set_state(entry, State.WAITING, name)
            writer.set_state(entry, State.COMPLETED)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ledger = read_ledger(path)
        assert len({operation.number for operation in ledger.operations}) == len(ledger.operations)
        assert len(ledger.pending) <= len(threads)
    for thread in threads:
        thread.join()
    ledger = read_ledger(path)
    assert (ledger.torn, ledger.pending) == (0, ())
    assert ledger.threads == ("t0", "t1", "t2", "t3")
    assert ledger.count(Channel(RECV, "0:1234", 0)) == 800


def test_a_forked_child_writes_nothing_into_it(writer: LedgerWriter, path: Path) -> None:
    child = os.fork()
    if not child:
        writer.issue(call(), State.WAITING)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert read_ledger(path).operations == ()


def test_outlives_its_writer(path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from pytest_pprank.oplog.file import Call, State
from pytest_pprank.oplog.record.writer import EncodedCall, LedgerWriter
writer = LedgerWriter(Path({str(path)!r}), 1)
call = Call("barrier", "collective", "0", "default group", (0, 1), "gloo")
writer.issue(EncodedCall(call), State.WAITING)
print("written", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"written\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    (operation,) = read_ledger(path).waiting
    assert operation.kind == "barrier"


def test_reserves_its_room_on_the_disk(path: Path) -> None:
    """A hole in the file that cannot be filled later would cause a SIGBUS in the test."""
    LedgerWriter(path, 1)
    assert path.stat().st_size == FILE_BYTES
    assert path.stat().st_blocks * 512 >= FILE_BYTES
