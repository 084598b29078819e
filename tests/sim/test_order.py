"""The rules of order: one test, or a pair, for each rule of SEMANTICS.md."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pytest_pprank.devices.sim import memory, tracker
from pytest_pprank.devices.sim.reports import Kind, SimRaceError
from pytest_pprank.devices.sim.settings import changed
from pytest_pprank.devices.sim.streams import host
from pytest_pprank.devices.sim.transfers import How, take_transfers

Found = Callable[[], list[Any]]
POISON = torch.iinfo(torch.int64).max - 0xDEAD


def sim() -> Any:
    return torch.get_device_module("sim")


def pinned(*values: int) -> torch.Tensor:
    return torch.tensor(values, pin_memory=True)


def peek(tensor: torch.Tensor) -> list[int]:
    """Return the current values in device memory, without waiting for anything."""
    there: list[int] = memory.host_alias(tensor).tolist()
    return there


def only(findings: list[Any], kind: Kind) -> Any:
    """Return the only finding, whose stacks must both name this file."""
    assert [f.kind for f in findings] == [kind], findings
    for side in (findings[0].first, findings[0].second):
        assert side.frames[0][0] == __file__, findings[0]
    return findings[0]


def test_copy_and_reader_on_one_stream_are_ordered() -> None:
    d = pinned(1, 2, 3).to("sim", non_blocking=True)
    assert peek(d) == [POISON] * 3
    assert (d + 1).tolist() == [2, 3, 4]


def test_a_copy_on_another_stream_must_be_waited_for(found: Found) -> None:
    with sim().stream(sim().Stream()):
        d = pinned(1, 2, 3).to("sim", non_blocking=True)
    assert peek(d + 0) == [POISON] * 3
    finding = only(found(), Kind.COPY_IN_FLIGHT)
    assert finding.first.what.startswith("host-to-device copy writes int64[3]")
    assert "wait" in str(finding)


def test_pickling_reads_in_order_of_the_streams(found: Found) -> None:
    """Torch then reads the memory through a second storage."""
    with sim().stream(sim().Stream()):
        d = pinned(1, 2, 3).to("sim", non_blocking=True)
    pickle.dumps(d)
    only(found(), Kind.COPY_IN_FLIGHT)


def test_wait_stream_orders() -> None:
    side = sim().Stream()
    with sim().stream(side):
        d = pinned(1, 2, 3).to("sim", non_blocking=True)
    sim().current_stream().wait_stream(side)
    assert (d + 0).tolist() == [1, 2, 3]


def test_an_event_orders_what_was_enqueued_before_its_record(found: Found) -> None:
    side, event = sim().Stream(), sim().Event()
    with sim().stream(side):
        d = pinned(1).to("sim", non_blocking=True)
        event.record()
        e = pinned(2).to("sim", non_blocking=True)
    sim().current_stream().wait_event(event)
    assert (d + 0).tolist() == [1]
    e + 0
    only(found(), Kind.COPY_IN_FLIGHT)


def test_an_event_that_was_never_recorded_orders_nothing(found: Found) -> None:
    side, event = sim().Stream(), sim().Event()
    with sim().stream(side):
        d = pinned(1).to("sim", non_blocking=True)
    sim().current_stream().wait_event(event)
    event.synchronize()
    d + 0
    only(found(), Kind.COPY_IN_FLIGHT)


@pytest.mark.parametrize("how", ["event", "stream", "device", "item", "cpu", "tolist", "nonzero"])
def test_what_the_host_has_waited_for_is_before_all_that_it_enqueues_later(how: str) -> None:
    side = sim().Stream()
    with sim().stream(side):
        d = pinned(1, 2).to("sim", non_blocking=True)
        if how == "event":
            side.record_event().synchronize()
        elif how == "stream":
            side.synchronize()
        elif how == "device":
            sim().synchronize()
        elif how == "item":
            d[0].item()
        elif how == "cpu":
            d.cpu()
        elif how == "tolist":
            d.tolist()
        else:
            d.nonzero()
    assert (d + 0).tolist() == [1, 2]


def test_side_streams_have_no_order_with_the_default_stream(found: Found) -> None:
    x = torch.zeros(4, device="sim")
    with sim().stream(sim().Stream()):
        x.add_(1)
    finding = only(found(), Kind.UNORDERED)
    assert "writes float32[4]" in finding.first.what
    assert "default stream" in finding.first.where


def test_what_an_operator_makes_was_written_on_its_stream(found: Found) -> None:
    x = torch.zeros(4, device="sim")
    sim().synchronize()
    with sim().stream(sim().Stream()):
        y = x + 1
        (z,) = (x * 2).split(4)
    y + 1
    assert "aten::add.Tensor writes float32[4]" in only(found(), Kind.UNORDERED).first.what
    z + 1
    assert "aten::mul.Tensor writes" in only(found(), Kind.UNORDERED).first.what


def test_two_reads_need_no_order() -> None:
    x = torch.zeros(4, device="sim")
    sim().synchronize()
    x + 1
    with sim().stream(sim().Stream()):
        x + 1


def test_a_write_must_be_after_reads_of_other_streams(found: Found) -> None:
    x = torch.zeros(4, device="sim")
    sim().synchronize()
    with sim().stream(sim().Stream()):
        x + 1
    x.add_(1)
    only(found(), Kind.UNORDERED)


def test_bytes_that_do_not_overlap_need_no_order(found: Found) -> None:
    x = torch.zeros(8, device="sim")
    sim().synchronize()
    x[:4].add_(1)
    with sim().stream(sim().Stream()):
        x[4:].add_(1)
        assert found() == []
        x[3:].add_(1)
    only(found(), Kind.UNORDERED)


def test_index_put_touches_the_rows_that_it_names(found: Found) -> None:
    x = torch.zeros(8, 4, device="sim")
    one, two = (torch.tensor(ids, device="sim") for ids in ([0, 5], [1, 6]))
    sim().synchronize()
    x[one] = 1.0
    side = sim().Stream()
    with sim().stream(side):
        x[two] = 2.0
        x[3:5].add_(1)
        x[two] + 1
        assert found() == []
        x[4:6].add_(1)
    only(found(), Kind.UNORDERED)


class TestWritesThatNobodySees:
    """The order of two writes matters only if bytes that both have written are read."""

    @staticmethod
    def race(x: torch.Tensor, ids: list[int], **put: Any) -> Any:
        """Write rows 1 and 2 of `x` on the current stream, and `ids` on another one, unordered."""
        one, two = (torch.tensor(rows, device="sim") for rows in ([1, 2], ids))
        values = torch.ones(2, 4, device="sim")
        side = sim().Stream()
        sim().synchronize()
        x.index_put_((one,), values, **put)
        with sim().stream(side):
            x.index_put_((two,), values, **put)
        return side

    def test_they_are_told_when_somebody_reads(self, found: Found) -> None:
        x = torch.zeros(8, 4, device="sim")
        side = self.race(x, [2, 3])
        sim().current_stream().wait_stream(side)
        assert x[torch.tensor([1, 3], device="sim")].shape == (2, 4)
        assert found() == []
        x[torch.tensor([2, 3], device="sim")]
        finding = only(found(), Kind.UNORDERED)
        assert "which aten::index.Tensor reads" in finding.second.what
        assert finding.first.what.startswith("aten::_index_put_impl_ writes")

    def test_a_write_after_both_ends_the_question(self, found: Found) -> None:
        x = torch.zeros(8, 4, device="sim")
        side = self.race(x, [2, 1])
        sim().current_stream().wait_stream(side)
        for row in (2, 1):
            x[torch.tensor([row, 5], device="sim")] = 3.0
        x + 1
        assert found() == []

    def test_a_write_of_a_part_leaves_the_rest(self, found: Found) -> None:
        x = torch.zeros(8, 4, device="sim")
        side = self.race(x, [2, 1])
        sim().current_stream().wait_stream(side)
        x[torch.tensor([2], device="sim")] = 3.0
        x[torch.tensor([2], device="sim")]
        assert found() == []
        x[torch.tensor([1], device="sim")]
        only(found(), Kind.UNORDERED)

    def test_a_write_that_is_not_after_both_does_not(self, found: Found) -> None:
        x = torch.zeros(8, 4, device="sim")
        side = self.race(x, [2, 1])
        x.fill_(3.0)  # ordered after the first write only
        sim().current_stream().wait_stream(side)
        assert found() == []
        x + 1
        assert {finding.kind for finding in found()} == {Kind.UNORDERED}

    def test_a_write_that_depends_on_what_was_there_is_a_reader(self, found: Found) -> None:
        x = torch.zeros(8, 4, device="sim")
        side = self.race(x, [2, 1])
        sim().current_stream().wait_stream(side)
        x.add_(1)
        only(found(), Kind.UNORDERED)

    def test_two_that_accumulate_see_each_other(self, found: Found) -> None:
        self.race(torch.zeros(8, 4, device="sim"), [2, 1], accumulate=True)
        only(found(), Kind.UNORDERED)

    def test_the_host_is_a_reader(self, found: Found) -> None:
        x = torch.zeros(8, 4, device="sim")
        self.race(x, [2, 1])
        sim().synchronize()
        x.cpu()
        only(found(), Kind.UNORDERED)

    def test_too_many_are_told(self, found: Found) -> None:
        x = torch.zeros(8, 4, device="sim")
        ids = torch.tensor([1], device="sim")
        side = sim().Stream()
        sim().synchronize()
        for _ in range(70):
            x[ids] = 1.0
            with sim().stream(side):
                x[ids] = 2.0
        assert {finding.kind for finding in found()} == {Kind.UNORDERED}


def test_order_goes_on_through_a_third_stream() -> None:
    one, two = sim().Stream(), sim().Stream()
    with sim().stream(one):
        d = pinned(1).to("sim", non_blocking=True)
    two.wait_stream(one)
    sim().current_stream().wait_stream(two)
    assert (d + 0).tolist() == [1]


def test_the_host_may_not_rewrite_the_source_of_a_copy(found: Found) -> None:
    p = pinned(1, 2, 3)
    d = p.to("sim", non_blocking=True)
    p[0] = 99
    assert (d + 0).tolist() == [99, 2, 3]
    finding = only(found(), Kind.STAGING_REWRITTEN)
    assert "Tensor.__setitem__" in finding.second.what


def test_not_even_after_the_device_has_used_it(found: Found) -> None:
    p = pinned(1, 2, 3)
    d = p.to("sim", non_blocking=True)
    d + 0
    p.copy_(torch.tensor([4, 5, 6]))
    only(found(), Kind.STAGING_REWRITTEN)
    sim().synchronize()
    assert found() == []


def test_a_rewrite_past_torch_is_found_when_the_copy_runs(found: Found) -> None:
    p = pinned(1, 2, 3)
    array = p.numpy()
    d = p.to("sim", non_blocking=True)
    array[1] = 77
    d + 0
    assert "writer is not known" in only(found(), Kind.STAGING_REWRITTEN).second.what


def test_the_source_is_free_once_the_host_has_waited() -> None:
    p = pinned(1, 2, 3)
    d = p.to("sim", non_blocking=True)
    sim().current_stream().synchronize()
    p[0] = 99
    assert d.tolist() == [1, 2, 3]


def test_a_pageable_source_is_staged_at_once() -> None:
    t = torch.tensor([1, 2, 3])
    d = t.to("sim", non_blocking=True)
    t[0] = 99
    assert d.tolist() == [1, 2, 3]
    assert [x.how for x in take_transfers()] == [How.STAGED, How.BLOCKING]


def test_a_staged_copy_is_ordered_by_its_stream_all_the_same(found: Found) -> None:
    with sim().stream(sim().Stream()):
        d = torch.tensor([1, 2]).to("sim", non_blocking=True)
    d + 0
    only(found(), Kind.UNORDERED)


def test_a_blocking_copy_is_waited_for_by_the_host() -> None:
    with sim().stream(sim().Stream()):
        d = torch.tensor([1, 2]).to("sim")
        e = pinned(3, 4).to("sim")
    assert (d + e).tolist() == [4, 6]


def test_a_copy_that_converts_does_so_on_the_device_if_non_blocking() -> None:
    d = torch.tensor([1.5, 2.5], pin_memory=True).to("sim", torch.int64, non_blocking=True)
    assert d.tolist() == [1, 2]
    how = [(x.direction, x.how, x.dtype) for x in take_transfers()]
    assert how[0] == ("H2D", How.ASYNC, torch.float32)
    torch.tensor([1.5]).to("sim", torch.int64)
    assert [(x.how, x.dtype) for x in take_transfers()] == [(How.BLOCKING, torch.int64)]


def test_the_host_must_wait_before_it_reads_a_download(found: Found) -> None:
    h = torch.ones(3, device="sim").to("cpu", non_blocking=True)
    assert h.isnan().all()
    h.tolist()
    finding = only(found(), Kind.READ_BEFORE_SYNC)
    assert "Tensor.tolist" in finding.second.what
    sim().synchronize()
    assert h.tolist() == [1, 1, 1]


def test_a_download_holds_what_was_there_when_it_was_enqueued() -> None:
    d = torch.ones(3, device="sim")
    h = d.to("cpu", non_blocking=True)
    d.zero_()
    sim().current_stream().synchronize()
    assert h.tolist() == [1, 1, 1]


def test_a_download_to_pageable_memory_blocks() -> None:
    h = torch.empty(3)
    h.copy_(torch.ones(3, device="sim"), non_blocking=True)
    assert h.tolist() == [1, 1, 1]


def test_a_download_and_an_upload_through_one_buffer_are_ordered_by_their_stream() -> None:
    h = torch.empty(3, pin_memory=True)
    h.copy_(torch.ones(3, device="sim"), non_blocking=True)
    assert h.to("sim", non_blocking=True).tolist() == [1, 1, 1]


def test_foreach_copy_moves_host_tensors_silently_but_the_ledger_knows() -> None:
    torch._foreach_copy_([torch.zeros(2, device="sim")], [torch.ones(2)])
    (transfer,) = take_transfers()
    assert (transfer.how, transfer.nbytes) == (How.BLOCKING, 8)
    assert transfer.frames[0][0] == __file__


def test_host_indices_are_uploaded_and_waited_for() -> None:
    x = torch.zeros(3, device="sim")
    take_transfers()
    x[torch.tensor([0, 1])]
    assert [(t.direction, t.how) for t in take_transfers()] == [("H2D", How.BLOCKING)]


def test_memory_freed_while_another_stream_uses_it_is_handed_out_again(found: Found) -> None:
    x = torch.zeros(1000, device="sim")
    side = sim().Stream()
    side.wait_stream(sim().current_stream())
    with sim().stream(side):
        x.add_(1)
    del x
    y = torch.empty(1000, device="sim")
    assert found() == []
    y.zero_()
    assert "record_stream" in only(found(), Kind.FREED_IN_USE).__str__()


@pytest.mark.parametrize("how", ["record_stream", "wait_stream", "own stream"])
def test_unless_the_allocator_knows_or_its_stream_has_waited(how: str) -> None:
    x = torch.zeros(1000, device="sim")
    side = sim().Stream()
    side.wait_stream(sim().current_stream())
    with sim().stream(side if how != "own stream" else sim().current_stream()):
        x.add_(1)
    if how == "record_stream":
        x.record_stream(side)
    del x
    if how == "wait_stream":
        sim().current_stream().wait_stream(side)
    torch.zeros(1000, device="sim")


def test_access_by_address_needs_the_host_to_have_waited(found: Found) -> None:
    x = torch.ones(4, device="sim")
    x.add_(1)
    tracker.raw_access(x.data_ptr() + 4, 4, write=False, what="RDMA")
    assert "RDMA reads 4 bytes" in only(found(), Kind.RAW_ACCESS).second.what
    sim().synchronize()
    tracker.raw_access(x.data_ptr() + 4, 4, write=False, what="RDMA")


def test_a_thread_that_was_handed_work_knows_what_was_done_then(found: Found) -> None:
    """Later waits of other threads may come too late for it."""
    x = torch.ones(4, device="sim")
    handed = host.now()
    done = sim().Event()
    done.record()
    sim().synchronize()
    address = x.data_ptr()

    def read(wait: bool) -> None:
        if wait:
            done.synchronize()
        known = host.of_this_thread(handed)
        tracker.raw_access(address, 4, write=False, what="RDMA", clock=known)

    for wait in (True, False):
        thread = threading.Thread(target=read, args=(wait,))
        thread.start()
        thread.join()
        assert len(found()) == (0 if wait else 1)


@pytest.mark.parametrize("waits", [True, False])
def test_a_task_of_a_pool_knows_what_its_submitter_has_waited_for(
    found: Found, waits: bool
) -> None:
    handed = host.now()
    x = torch.ones(4, device="sim")
    done = sim().Event()
    done.record()
    address = x.data_ptr()

    def read() -> None:
        known = host.of_this_thread(handed)
        tracker.raw_access(address, 4, write=False, what="RDMA", clock=known)

    def send(pool: ThreadPoolExecutor) -> None:
        if waits:
            done.synchronize()
        pool.submit(read).result()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # the pool's own thread has begun before
        sender = threading.Thread(target=send, args=(pool,))
        sender.start()
        sender.join()
    assert len(found()) == (0 if waits else 1)


def test_access_by_address_meets_only_the_rows_that_an_index_names(found: Found) -> None:
    x = torch.zeros(8, 4, device="sim")
    rows = torch.tensor([1, 6]).to("sim")
    sim().synchronize()
    x[rows] = 1
    tracker.raw_access(x.data_ptr() + 3 * 16, 2 * 16, write=True, what="RDMA")
    assert not found()
    tracker.raw_access(x.data_ptr() + 5 * 16, 2 * 16, write=True, what="RDMA")
    assert "RDMA writes 32 bytes" in only(found(), Kind.RAW_ACCESS).second.what


class Batch:
    def __init__(self) -> None:
        self.ids = torch.zeros(4, device="sim")
        self.lens = torch.zeros(4, device="sim")


def double(tensor: torch.Tensor) -> None:
    tensor.mul_(2)


def written_on_a_side_stream() -> Batch:
    batch = Batch()
    sim().synchronize()
    with sim().stream(sim().Stream()):
        for tensor in vars(batch).values():
            tensor.add_(1)
    return batch


def test_fields_that_one_line_touches_are_told_once_each(found: Found) -> None:
    batch = written_on_a_side_stream()
    for _ in range(3):
        for name in ("ids", "lens"):
            double(getattr(batch, name))
    tensors = [finding.tensor for finding in found()]
    assert tensors == ["Batch.ids (float32[4])", "Batch.lens (float32[4])"]


def test_callers_of_one_function_are_told_once_each(found: Found) -> None:
    batch = written_on_a_side_stream()
    double(batch.ids)
    double(batch.ids)
    lines = [finding.second.frames[1][1] for finding in found()]
    assert len(lines) == 2
    assert lines[1] == lines[0] + 1


def test_tensors_of_many_shapes_are_one_finding(found: Found) -> None:
    for size in range(1, 40):
        with sim().stream(sim().Stream()):
            tensor = torch.zeros(size, device="sim")
        double(tensor)
    assert len(found()) == 1


def test_strict_mode_raises_at_the_second_access(found: Found) -> None:
    with sim().stream(sim().Stream()):
        d = pinned(1).to("sim", non_blocking=True)
    with changed(strict=True), pytest.raises(SimRaceError, match="copy in flight"):
        d + 0
    only(found(), Kind.COPY_IN_FLIGHT)


def test_without_tracking_a_wrong_order_is_still_visible_in_the_values() -> None:
    with changed(tracking=False):
        with sim().stream(sim().Stream()):
            d = pinned(1).to("sim", non_blocking=True)
        assert peek(d + 0) == [POISON]


def test_peer_copies_take_both_devices_streams() -> None:
    x = torch.ones(4, device="sim:0")
    y = x.to("sim:1", non_blocking=True)
    y.add_(1)
    x.zero_()
    assert y.tolist() == [2, 2, 2, 2]
