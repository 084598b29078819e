"""Several operators that run as one kernel of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pytest_pprank.devices.sim import memory
from pytest_pprank.devices.sim.accesses import rows_of
from pytest_pprank.devices.sim.fused import Launch, fused
from pytest_pprank.devices.sim.reports import Kind

Found = Callable[[], list[Any]]


def sim() -> Any:
    return torch.get_device_module("sim")


def halves(x: torch.Tensor, *, by: torch.Tensor) -> tuple[torch.Tensor, Any, torch.Tensor, None]:
    """Return new memory, a list with two parts of one tensor, a view of an argument, and None."""
    return (x * by).exp(), list((x + 1).chunk(2)), x[1:], None


def test_it_computes_what_the_function_computes_and_is_one_piece_of_work() -> None:
    x, by = torch.arange(6.0).view(2, 3), torch.tensor(0.5)
    there, stream = x.to("sim"), sim().current_stream()
    before = stream.clock[stream.stream_id]
    new, parts, view, nothing = fused("halves", halves)(there, by=by)
    assert stream.clock[stream.stream_id] == before + 1
    expected = halves(x, by=by)
    assert torch.equal(new.cpu(), expected[0])
    assert torch.equal(torch.cat(parts).cpu(), torch.cat(expected[1]))
    assert nothing is None
    assert view.untyped_storage()._cdata == there.untyped_storage()._cdata
    parts[0].zero_()
    assert torch.equal(parts[1].cpu(), expected[1][1])
    view.zero_()
    assert there.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_its_accesses_are_compared_as_those_of_an_operator(found: Found) -> None:
    x = torch.ones(4, device="sim")
    sim().synchronize()
    with sim().stream(sim().Stream()):
        y = fused("norm", lambda x: x / x.sum())(x)
        assert found() == []
        x.zero_()
    x + 1
    y + 1
    first, second = found()
    assert {first.kind, second.kind} == {Kind.UNORDERED}
    assert "norm writes float32[4]" in second.first.what
    assert second.first.frames[0][0] == __file__


def test_it_waits_for_what_it_reads_and_poison_shows_where_it_does_not(found: Found) -> None:
    side, double = sim().Stream(), fused("double", lambda x: x * 2)
    with sim().stream(side):
        x = torch.ones(2, pin_memory=True).to("sim", non_blocking=True)
    assert memory.host_alias(double(x)).isnan().all()
    assert [one.kind for one in found()] == [Kind.COPY_IN_FLIGHT]
    sim().current_stream().wait_stream(side)
    assert double(x).tolist() == [2, 2]


def test_host_tensors_are_refused_and_do_where_all_are() -> None:
    add = fused("add", lambda x, other: x + other)
    with pytest.raises(RuntimeError, match=r"argument other \(2,\) torch.float32 in method add"):
        add(torch.ones(2, device="sim"), other=torch.ones(2))
    assert add(torch.ones(2), other=torch.ones(2)).tolist() == [2, 2]


def test_a_kernel_may_read_parts_of_a_table_and_write(found: Found) -> None:
    table, rows = torch.ones(3, 8, device="sim"), torch.ones(3, 2, device="sim")
    out = torch.zeros(2, device="sim")
    sim().synchronize()
    with sim().stream(sim().Stream()):
        launch = Launch("gather")
        part = launch.reads_bytes(table, "table", [(0, 16), (32, 40)])
        picked = launch.reads(rows, "rows", rows_of(rows, torch.tensor([-1])))
        launch.writes(out).copy_(part[0, :2] + picked[2])
        launch.check()
        assert launch.results(None) is None
    table[0, 4:] = 2
    table[1, 2:] = 2
    rows[:2] = 2
    assert found() == []
    table[1, 1:2].add_(1)
    rows[2] = 2
    assert [one.kind for one in found()] == [Kind.UNORDERED] * 2
    sim().synchronize()
    assert out.tolist() == [2, 2]


def test_a_kernel_that_the_host_waits_for_is_before_what_comes_later() -> None:
    x = torch.zeros(2, device="sim")
    with sim().stream(sim().Stream()):
        sim().current_stream().wait_stream(sim().default_stream())
        launch = Launch("lengths")
        launch.reads(x)
        launch.waits()
    x.zero_()
