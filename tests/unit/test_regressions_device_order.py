"""Which edits concern only device order; all others show on device cpu, too."""

from __future__ import annotations

import ast

import pytest

from pytest_pprank.bench.device_order import is_of_device_order
from pytest_pprank.sglang.reverts import Edited


def judged(before: str, after: str) -> bool:
    return is_of_device_order([Edited("m.f", function(before), function(after))])


def function(body: str) -> ast.FunctionDef:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (node,) = ast.parse(f"def f(self):\n{lines}    return 1\n").body
    assert isinstance(node, ast.FunctionDef)
    return node


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("d2h_event.synchronize()", "pass"),
        ("torch.cuda.synchronize()", ""),
        ("self.copy_stream.wait_stream(self.forward_stream)", ""),
        ("current_stream().wait_event(ready)", ""),
        ("self.publish_ready.wait()", ""),
        ("self.copy_done[slot].record()", ""),
        ("x.record_stream(s)", ""),
        ("if self.done is not None:\n    s.wait_event(self.done)", ""),
        ("self.send(x, ready_event=self.launch_event)", "self.send(x, ready_event=None)"),
        ("self.send(x, self.launch_event)", "self.send(x, None)"),
        ("self.ready_event = self.note()", "self.ready_event = None"),
        ("done = s.record_event()", ""),
        ("x = y.to(self.device, non_blocking=True)", "x = y"),
        ("x = y.to(self.device, torch.int64)", "x = y.to(torch.int64)"),
        ("x = y.to('cuda:0', non_blocking=True)", "x = y.to('cuda:0')"),
        ("x = y.cpu()", "x = y"),
        ("x.copy_(y)", "x.copy_(y, non_blocking=True)"),
        ("x = torch.tensor(y, pin_memory=True).to(d.device)", "x = torch.tensor(y, device=d)"),
        ("x = torch.empty(1, device=self.device)", "x = torch.empty(1)"),
        ("with self.copy_stream_ctx:\n    g()", "g()"),
        ("with torch.cuda.stream(s), lock:\n    g()", "with lock:\n    g()"),
        ("with d.stream(self.a_stream):\n    g()", "with d.stream(self.b_stream):\n    g()"),
        ("e.record()\ng()", "g()\ne.record()"),
    ],
)
def test_device_order(before: str, after: str) -> None:
    assert judged(before, after)
    assert judged(after, before)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("self.release(req)", "pass"),
        ("x = 1", "x = 2"),
        ("x.staged = None", ""),
        ("x.ids = x.staged.to(self.device)", ""),  # removed as a whole: there are no ids
        ("x = y.to(torch.int64)", "x = y"),
        ("x.copy_(y)", ""),
        ("p2p_work.work.wait()", ""),  # a message, not a stream
        ("self.stream_output(reqs)", ""),
        ("self.event_loop(x)", ""),
        ("synchronize(x)", ""),
        ("e.record()\nx = 1", "x = 2"),
        ("if a:\n    e.record()\nelse:\n    g()", "if b:\n    e.record()\nelse:\n    g()"),
        ("with lock:\n    g()", "g()"),
    ],
)
def test_more_than_device_order(before: str, after: str) -> None:
    assert not judged(before, after)


def test_one_edit_that_is_more_makes_it_more() -> None:
    order = Edited("m.f", function("e.record()"), function(""))
    more = Edited("m.g", function("x = 1"), function("x = 2"))
    assert not is_of_device_order([order, more])
