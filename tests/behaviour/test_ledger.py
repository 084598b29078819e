"""The ledger of real ranks with gloo, read from outside in every state of the rank."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.util
import os
import re
import signal
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pytest_pprank.oplog.file import CREATE, Ledger, Operation, State, ledger_file, read_ledger
from pytest_pprank.oplog.read.wait_graph import Waits, explain_waits, summary

T = TypeVar("T")

DEADLINE = 60
FINISHED = "finished the test"
HERE = os.path.basename(__file__)


class Rank:
    """What a rank's function gets: its rank, and a pipe to the test."""

    send: Callable[..., None]
    kept: object

    def __init__(self, rank: int, world: int, workdir: Path, pipe: Connection) -> None:
        from pytest_pprank.oplog.record import ledger

        self.rank, self.world, self.workdir, self.pipe = rank, world, workdir, pipe
        self.other = 1 - rank
        self.ledger = ledger

    def join_group(self, **options: Any) -> Any:
        import torch.distributed as dist

        store = f"file://{self.workdir}/store"
        dist.init_process_group(
            "gloo", init_method=store, rank=self.rank, world_size=self.world, **options
        )
        return dist

    def operations(self) -> tuple[Operation, ...]:
        return read_ledger(ledger_file(self.workdir, self.rank)).operations

    def last(self) -> Operation:
        return self.operations()[-1]


Body = Callable[[Rank], object]


def run_rank(body: Body, rank: int, world: int, workdir: Path, pipe: Connection) -> None:
    from torch.distributed import send  # a name bound before the ledger hooks in

    me = Rank(rank, world, workdir, pipe)
    me.send = send
    me.ledger.start_ledger(workdir, rank)
    me.ledger.begin_test(1)
    try:
        pipe.send(("done", body(me)))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
    pipe.recv()  # stay alive until the test has read the ledger
    os._exit(0)


class Ranks:
    """Ranks as separate processes, observed from outside."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.processes: list[ForkServerProcess] = []
        self.pipes: list[Connection] = []
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torch.distributed"])

    def start(self, body: Body, world: int = 2) -> Ranks:
        for rank in range(world):
            ours, theirs = self.context.Pipe()
            process = self.context.Process(
                target=run_rank, args=(body, rank, world, self.workdir, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)
        return self

    def result(self, rank: int) -> Any:
        assert self.pipes[rank].poll(DEADLINE), f"rank {rank}: {summary(self.ledger(rank))}"
        outcome, value = self.pipes[rank].recv()
        assert outcome == "done", value
        return value

    def results(self) -> list[Any]:
        return [self.result(rank) for rank in range(len(self.processes))]

    def ledger(self, rank: int) -> Ledger:
        return read_ledger(ledger_file(self.workdir, rank))

    def explain(self, **places: str) -> Waits:
        ledgers = {rank: self.ledger(rank) for rank in range(len(self.processes))}
        return explain_waits(ledgers, {int(name[1:]): place for name, place in places.items()})

    def until(self, condition: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + DEADLINE
        while not (value := condition()):
            ledgers = [summary(self.ledger(rank)) for rank in range(len(self.processes))]
            assert time.monotonic() < deadline, "\n".join(ledgers)
            time.sleep(0.02)
        return value

    def until_waiting(self, rank: int, kind: str) -> Operation:
        def waiting() -> list[Operation]:
            return [op for op in self.ledger(rank).waiting if op.kind == kind]

        return self.until(waiting)[0]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module", autouse=True)
def fork_server_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the folder of the fork server's socket; if we are killed, pytest removes it later."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("f"))
    try:
        yield multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = before


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path)
    yield ranks
    ranks.end()


def every_operation(me: Rank) -> None:
    import torch

    dist = me.join_group()
    root = me.rank == 0
    tensor, two = torch.ones(4), [torch.ones(4), torch.ones(4)]
    if root:
        me.send(tensor, 1, tag=5)
        dist.recv(tensor)
    else:
        dist.recv(tensor, 0, tag=5)
        dist.send(tensor, 0)
    exchange = [
        dist.P2POp(dist.isend, torch.ones(2), me.other),
        dist.P2POp(dist.irecv, torch.ones(2), me.other),
    ]
    for work in dist.batch_isend_irecv(exchange):
        work.wait()
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    dist.broadcast(tensor, 1)
    dist.reduce(tensor, 1)
    dist.all_gather(two, tensor)
    dist.gather(tensor, two if root else None)
    dist.scatter(tensor, two if root else None)
    dist.all_to_all_single(torch.ones(4), tensor)
    dist.barrier()
    dist.monitored_barrier()
    dist.broadcast_object_list([{"a": 1}])
    pair = dist.new_group([0, 1], group_desc="pair")
    dist.all_reduce(tensor, group=pair, async_op=True).wait()
    dist.all_reduce(tensor, async_op=True).get_future().wait()


def test_every_operation_is_seen(ranks: Ranks) -> None:
    ranks.start(every_operation).results()
    ledger = ranks.ledger(0)
    assert all(operation.state is State.COMPLETED for operation in ledger.operations)
    assert ledger.complete
    kinds = [operation.kind for operation in ledger.operations]
    assert kinds == [
        "init_process_group",
        *("send", "recv", "send", "recv"),
        *("all_reduce", "broadcast", "reduce", "all_gather", "gather", "scatter"),
        *("all_to_all_single", "barrier", "monitored_barrier", "broadcast", "broadcast"),
        *("new_group", "all_reduce", "all_reduce"),
    ]
    by_number = {operation.number: operation for operation in ledger.operations}
    assert [by_number[n].peer for n in (2, 3, 4, 5)] == [1, None, 1, 1]
    assert [by_number[n].root for n in (6, 7, 8)] == [None, 1, 1]
    assert (by_number[2].tag, by_number[2].shapes, by_number[2].nbytes) == (5, ((4,),), 16)
    assert by_number[6].detail == "MAX"
    assert {(op.label, op.ranks) for op in ledger.operations} == {
        ("default group", (0, 1)),
        ("group pair", (0, 1)),
    }
    sites = {os.path.basename(operation.site.file) for operation in ledger.operations}
    assert sites == {HERE}
    others = [operation.kind for operation in ranks.ledger(1).operations]
    assert others == [*kinds[:1], "recv", "send", *kinds[3:]]


def alike(me: Rank) -> None:
    """Issue many operations on one line that differ in one respect each; twice."""
    import torch

    dist = me.join_group()
    op = dist.ReduceOp
    calls = [
        (dist.all_reduce, torch.ones(2), {"op": op.SUM}),
        (dist.all_reduce, torch.ones(2), {"op": op.MAX}),
        (dist.all_reduce, torch.ones(3), {"op": op.MAX}),
        (dist.all_reduce, torch.ones(3, dtype=torch.int64), {"op": op.MAX}),
        (dist.broadcast, torch.ones(3), {"src": 0}),
        (dist.all_reduce, torch.ones(2), {"op": op.SUM, "group": dist.new_group([0])}),
        (dist.reduce, torch.ones(3), {"dst": 0}),
    ]

    def go() -> None:
        for function, tensor, options in calls:
            function(tensor, **options)

    threads = [threading.Thread(target=go, name="other"), threading.Thread(target=go, name="third")]
    go()
    go()
    for thread in threads:
        thread.start()
        thread.join()


def test_operations_from_one_line_are_told_apart(ranks: Ranks) -> None:
    ranks.start(alike, world=1).results()
    operations = [op for op in ranks.ledger(0).operations if op.way != CREATE]
    shown = [
        (op.kind, op.detail, op.shapes, op.dtype, op.nbytes, op.label == "default group", op.root)
        for op in operations
    ]
    assert shown[:7] == [
        ("all_reduce", "SUM", ((2,),), "float32", 8, True, None),
        ("all_reduce", "MAX", ((2,),), "float32", 8, True, None),
        ("all_reduce", "MAX", ((3,),), "float32", 12, True, None),
        ("all_reduce", "MAX", ((3,),), "int64", 24, True, None),
        ("broadcast", "", ((3,),), "float32", 12, True, 0),
        ("all_reduce", "SUM", ((2,),), "float32", 8, False, None),
        ("reduce", "SUM", ((3,),), "float32", 12, True, 0),
    ]
    assert shown == 4 * shown[:7]
    assert [op.thread for op in operations[::7]] == ["MainThread", "MainThread", "other", "third"]
    assert len({op.site.line for op in operations}) == 1


def pending_states(me: Rank) -> dict[str, object]:
    import torch

    dist = me.join_group()
    seen: dict[str, object] = {}
    if me.rank == 0:
        me.kept = dist.isend(torch.ones(2), 1, tag=1)
        seen["isend"] = me.last().state
        me.ledger.update_ledger()
        seen["isend after a look"] = me.last().state
        dist.isend(torch.ones(2), 1, tag=2)
        me.ledger.update_ledger()
        seen["dropped"] = me.last().state
        work = dist.isend(torch.ones(2), 1, tag=3)
        waiter = threading.Thread(target=work.wait, name="waiter")
        waiter.start()
        waiter.join()
        seen["waited elsewhere"] = (me.last().state, me.last().thread)
    else:
        dist.recv(torch.ones(2), 0, tag=3)
    work = dist.all_reduce(torch.ones(2), async_op=True)
    deadline = time.monotonic() + DEADLINE
    while me.last().state is State.ISSUED and time.monotonic() < deadline:
        me.ledger.update_ledger()
    seen["all_reduce after a look"] = me.last().state
    alive = weakref.ref(work)
    del work
    gc.collect()
    seen["work is kept alive"] = alive() is not None
    return seen


def test_pending_operations_have_their_state(ranks: Ranks) -> None:
    assert ranks.start(pending_states).results()[0] == {
        "isend": State.ISSUED,
        "isend after a look": State.ISSUED,
        "dropped": State.DROPPED,
        "waited elsewhere": (State.COMPLETED, "waiter"),
        "all_reduce after a look": State.COMPLETED,
        "work is kept alive": False,
    }
    assert "waiter" in ranks.ledger(0).threads


def errors(me: Rank) -> tuple[list[tuple[str, str, int]], bool] | None:
    import torch

    dist = me.join_group()
    if me.rank:
        return None
    seen = []
    actions: tuple[Callable[[], object], ...] = (
        lambda: dist.group.WORLD.allreduce(3),
        lambda: dist.group.WORLD.send([torch.ones(2)] * 2, 1, 0),
        lambda: dist.irecv(torch.ones(2), 1).wait(timedelta(seconds=0.1)),
    )
    for action in actions:
        try:
            action()
        except (TypeError, RuntimeError, IndexError, ValueError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "pytest_pprank/oplog/record" in frame.filename]
            seen.append((type(error).__name__, str(error), len(ours)))
    return seen, read_ledger(ledger_file(me.workdir, 0)).complete


def test_errors_go_through_unchanged(ranks: Ranks) -> None:
    seen, complete = ranks.start(errors).result(0)
    assert complete
    assert [(name, frames) for name, _, frames in seen] == [
        ("TypeError", 1),
        (seen[1][0], 1),
        ("RuntimeError", 1),
    ]
    assert "incompatible function arguments" in seen[0][1]
    refused, failed = ranks.ledger(0).operations[-2:]
    assert (refused.state, refused.sequence) == (State.FAILED, 0)
    assert refused.error == seen[1][1].splitlines()[0][:200]
    assert failed.state is State.FAILED
    assert failed.error
    assert failed.error == seen[2][1].splitlines()[0][:200]


def one_receives(me: Rank) -> None:
    import torch

    dist = me.join_group()
    if me.rank == 1:
        dist.recv(torch.ones(4, 8), 0, tag=3)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_is_read_while_its_rank_cannot_answer(ranks: Ranks, how: signal.Signals) -> None:
    ranks.start(one_receives).result(0)
    before = ranks.until_waiting(1, "recv")
    pid = ranks.processes[1].pid
    assert pid
    os.kill(pid, how)
    if how == signal.SIGKILL:
        ranks.processes[1].join(DEADLINE)
    assert ranks.ledger(1).waiting == (before,)
    waits = ranks.explain(r0=FINISHED)
    assert waits.hopeless == {1}
    (line,) = waits.lines
    place = rf"{re.escape(HERE)}:\d+ in one_receives"
    facts = rf"\({place}, tag 3, float32\[4,8\], 128 B, default group\)"
    assert re.fullmatch(
        rf"rank 1 waits in recv from rank 0 {facts}; rank 0 finished the test without sending", line
    )


def around(me: Rank) -> None:
    import torch

    me.join_group().recv(torch.ones(1), (me.rank + 1) % me.world)


def test_three_ranks_in_a_circle(ranks: Ranks) -> None:
    ranks.start(around, world=3)
    for rank in range(3):
        ranks.until_waiting(rank, "recv")
    waits = ranks.explain()
    assert waits.deadlock == (0, 1, 2)
    assert waits.lines[0].startswith("deadlock: rank 0 waits in recv from rank 1 (")
    assert ranks.explain().key == waits.key


def one_sends(me: Rank) -> None:
    import torch

    dist = me.join_group()
    if me.rank == 1:
        dist.send(torch.ones(1), 0)


def test_gloo_sends_no_message_before_it_is_received(ranks: Ranks) -> None:
    """This is why a send that nobody receives must wait, however small it is."""
    ranks.start(one_sends).result(0)
    ranks.until_waiting(1, "send")
    assert ranks.explain(r0=FINISHED).hopeless == {1}


def different(me: Rank) -> None:
    import torch

    dist = me.join_group()
    if me.rank:
        dist.broadcast(torch.ones(4), 0)
    else:
        dist.all_reduce(torch.ones(4))


def test_different_collectives(ranks: Ranks) -> None:
    ranks.start(different)

    def mismatch() -> Waits | None:
        waits = ranks.explain()
        return waits if waits.mismatch else None

    line = ranks.until(mismatch).lines[0]
    assert re.search(r"rank 0 all_reduce #1 \(.* SUM, .*rank 1 broadcast #1 \(.* root 0, ", line)


def one_creates(me: Rank) -> None:
    dist = me.join_group()
    if me.rank == 1:
        dist.new_group([0, 1])


def test_a_group_that_one_rank_creates_alone(ranks: Ranks) -> None:
    ranks.start(one_creates).result(0)
    operation = ranks.until_waiting(1, "new_group")
    assert (operation.way, operation.site.function) == (CREATE, "one_creates")
    assert ranks.explain(r0=FINISHED).hopeless == {1}


def again(me: Rank) -> None:
    import torch

    for _ in range(2):
        dist = me.join_group()
        dist.all_reduce(torch.ones(1))
        dist.barrier()
        dist.destroy_process_group()
        if me.rank == 0:
            Path(me.workdir, "store").unlink(missing_ok=True)
        me.pipe.send("round")
        me.pipe.recv()


def test_a_group_that_is_created_again_counts_from_one(ranks: Ranks) -> None:
    ranks.start(again)
    for _ in range(2):
        for pipe in ranks.pipes:
            assert pipe.poll(DEADLINE)
            assert pipe.recv() == "round"
        for pipe in ranks.pipes:
            pipe.send("go on")
    ranks.results()
    sequences = [op.sequence for op in ranks.ledger(0).operations if op.way != CREATE]
    assert sequences == [1, 2, 1, 2]
    creations = [op.sequence for op in ranks.ledger(0).operations if op.way == CREATE]
    assert creations == [1, 2]
    assert len({op.group for op in ranks.ledger(0).operations if op.way != CREATE}) == 2


def waits_for_a_key(me: Rank) -> None:
    from torch.distributed import FileStore

    if me.rank == 0:
        FileStore(f"{me.workdir}/other", 2).get("a key")


def test_a_wait_for_a_key_of_a_store(ranks: Ranks) -> None:
    ranks.start(waits_for_a_key).result(1)
    assert ranks.until_waiting(0, "store.get").detail == "key a key"
    (line,) = ranks.explain(r1=FINISHED).lines
    assert line.endswith("in waits_for_a_key, key a key)")


def methods(_: Rank) -> set[str]:
    from torch._C._distributed_c10d import ProcessGroup

    from pytest_pprank.oplog.record.calls import KINDS

    returning_work = {
        name
        for name in dir(ProcessGroup)
        if "-> c10d::Work" in str(getattr(ProcessGroup, name).__doc__)
    }
    return returning_work - set(KINDS) - {"_end_coalescing"}


def test_no_method_of_torch_is_forgotten(ranks: Ranks) -> None:
    assert ranks.start(methods, world=1).result(0) == set()


def inherits(me: Rank) -> int:
    import torch

    dist = me.join_group()
    dist.barrier()
    before = len(me.operations())
    child = os.fork()
    if not child:
        signal.alarm(10)  # a lock of gloo may have been held by a thread that the fork lacks
        dist.isend(torch.ones(1), me.other)
        os._exit(0)
    os.waitpid(child, 0)
    return len(me.operations()) - before


def test_a_child_of_a_rank_writes_nothing_into_its_ledger(ranks: Ranks) -> None:
    assert ranks.start(inherits).results() == [0, 0]


def start_without_room(me: Rank) -> None:
    me.ledger._recorder = None  # type: ignore[attr-defined]
    me.ledger.start_ledger(Path("/dev/null"), 0)
    import torch

    me.join_group().all_reduce(torch.ones(1))
    me.ledger.begin_test(2)
    me.ledger.update_ledger()


def test_a_ledger_that_cannot_be_written_is_in_nobodys_way(ranks: Ranks) -> None:
    ranks.start(start_without_room).results()
    assert read_ledger(ledger_file(Path("/dev/null"), 0)).problem
