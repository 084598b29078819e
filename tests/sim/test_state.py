"""Descriptions by assertions of tensors whose copies are under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pytest_pprank import assert_materialized_on_device, assert_no_pending_copies
from pytest_pprank.devices.host_reads import host_values
from pytest_pprank.devices.sim.reports import Kind
from pytest_pprank.devices.sim.transfers import take_transfers
from pytest_pprank.devices.sim.untracked import untracked

Found = Callable[[], list[Any]]


def sim() -> Any:
    return torch.get_device_module("sim")


def uploaded(*, pin: bool = True) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return a host tensor, the device tensor that it is copied to, and that copy's stream."""
    staging, stream = torch.ones(8, pin_memory=pin), sim().Stream()
    with sim().stream(stream):
        return staging, staging.to("sim", non_blocking=True), stream


def test_who_looks_sees_what_the_current_stream_would_and_orders_nothing(found: Found) -> None:
    staging, there, stream = uploaded()
    assert not torch.equal(host_values(there), staging)
    with sim().stream(stream):
        assert torch.equal(host_values(there), staging)
    with pytest.raises(AssertionError, match="not there for the current stream"):
        assert_materialized_on_device(there, device="sim")
    assert found() == []


@pytest.mark.parametrize("pin", [True, False])
@pytest.mark.parametrize("how", ["stream", "event", "host"])
def test_a_tensor_is_there_once_its_copy_is_waited_for(how: str, pin: bool) -> None:
    _, there, stream = uploaded(pin=pin)
    with pytest.raises(AssertionError, match="not there for the current stream") as failure:
        assert_materialized_on_device(there, device="sim")
    assert "host-to-device copy writes float32[8], on stream" in str(failure.value)
    assert "test_state.py" in str(failure.value)
    with sim().stream(stream):
        assert_materialized_on_device(there, device="sim")
    if how == "stream":
        sim().current_stream().wait_stream(stream)
    elif how == "event":
        stream.record_event().wait()
    else:
        stream.synchronize()
    assert_materialized_on_device(there, device="sim")


def test_only_the_bytes_that_are_written_count() -> None:
    whole = torch.zeros(8, device="sim")
    sim().synchronize()
    with sim().stream(sim().Stream()):
        whole[:4].copy_(torch.ones(4, pin_memory=True), non_blocking=True)
    assert_materialized_on_device(whole[4:], device="sim")
    with pytest.raises(AssertionError, match="not there for the current stream"):
        assert_materialized_on_device(whole[3:], device="sim")


def test_readers_do_not_count_and_other_writers_do() -> None:
    whole, side = torch.zeros(8, device="sim"), sim().Stream()
    side.wait_stream(sim().current_stream())
    with sim().stream(side):
        whole.sum()
        assert_materialized_on_device(whole, device="sim")
    assert_materialized_on_device(whole, device="sim")
    with sim().stream(side):
        whole.add_(1)
    with pytest.raises(AssertionError, match="aten::add_"):
        assert_materialized_on_device(whole, device="sim")
    sim().synchronize()


def test_copies_are_pending_until_the_host_has_waited() -> None:
    staging, there, stream = uploaded()
    sim().current_stream().wait_stream(stream)
    (there + 1).sum()
    for obj in (None, staging, there, there[2:]):
        with pytest.raises(AssertionError, match=r"host-to-device copy of float32\[8\], on stream"):
            assert_no_pending_copies(obj)
    assert_no_pending_copies(torch.ones(8, pin_memory=True))
    assert_no_pending_copies(torch.ones(8, device="sim"))
    stream.synchronize()
    assert_no_pending_copies()
    download = there.to("cpu", non_blocking=True)
    assert_no_pending_copies(there)
    with pytest.raises(AssertionError, match=r"device-to-host copy of float32\[8\]"):
        assert_no_pending_copies(download)
    sim().synchronize()
    assert_no_pending_copies(download)


def test_who_only_looks_changes_nothing(found: Found) -> None:
    staging, there, stream = uploaded()
    with untracked():
        assert there.tolist() == [1] * 8
        assert staging.tolist() == [1] * 8
    assert repr(there) == f"tensor({[1.0] * 8}, device='sim:0')".replace(".0", ".")
    assert (found(), take_transfers()[1:]) == ([], [])
    with pytest.raises(AssertionError, match="host-to-device copy of"):
        assert_no_pending_copies(there)
    with pytest.raises(AssertionError, match="not there for the current stream"):
        assert_materialized_on_device(there, device="sim")
    there + 1
    assert len(found()) == 1
    staging[0] = 2
    assert [one.kind for one in found()] == [Kind.STAGING_REWRITTEN]
    stream.synchronize()


def test_what_cannot_be_asked_about() -> None:
    with pytest.raises(TypeError, match=r"assert_no_pending_copies: .*list.* is not known"):
        assert_no_pending_copies([torch.ones(1)])


def test_a_thread_that_waits_while_another_one_looks_has_waited(found: Found) -> None:
    there = torch.arange(8, dtype=torch.int32).to("sim")
    here = torch.empty(8, dtype=torch.int32, pin_memory=True)
    here.copy_(there, non_blocking=True)
    copied = sim().current_stream().record_event()
    read: list[int] = []

    def wait_and_read() -> None:  # bypasses torch, as SGLang's transfer threads do
        copied.synchronize()
        read.extend(here.numpy().tolist())

    thread = threading.Thread(target=wait_and_read)
    with untracked():
        thread.start()
        thread.join(0.5)  # it has read wrong values by now, or waits for the end of this block
    thread.join()
    assert read == list(range(8))
    assert found() == []
