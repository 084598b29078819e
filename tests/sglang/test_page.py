"""The page shows what SGLang's stages did: forwards, states, memory, messages, KV, copies, logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from page_reader import Page, arrows, events

if TYPE_CHECKING:
    from tests.conftest import Run, Runner


@pytest.fixture(scope="module")
def page(inner: Callable[..., Run], module_runner: Runner) -> Page:
    flags = ("-p", "pytest_pprank", "--pp-size=2", "--pprank-device=sim", "--pprank-lease=off")
    run = inner("page", *flags, "--pprank-report=page")
    assert set(run.counts()) <= {"failed", "warning", "warnings"}, run.out
    return Page(module_runner.folder / "page")


def test_forwards_of_both_stages(page: Page) -> None:
    shown = page.timeline("test_generate[pp2]")
    ran = [[event.name for event in events(shown, "forward", rank)] for rank in (0, 1)]
    assert ran[0] == ran[1]
    assert ran[0][0] == "extend req-000, req-001"
    assert set(ran[0][1:]) == {"decode req-000, req-001"}
    first = events(shown, "forward", 0)[0]
    assert first.end is not None
    assert first.end > first.start
    assert first.iteration == 0
    assert first.details["tokens"] == ["req-000: 40", "req-001: 30"]
    made = [event for event in events(shown, "batch", 0) if event.name.startswith("batch: extend")]
    assert made[0].details["chunks"] == ["req-000: 0-40", "req-001: 0-30"]


def test_iterations_and_states(page: Page) -> None:
    shown = page.timeline("test_generate[pp2]")
    for rank in (0, 1):
        loops = events(shown, "iteration", rank)
        assert [event.iteration for event in loops] == list(range(len(loops)))
        states = events(shown, "state", rank)
        names = [f"after iteration {number}" for number in range(len(loops))]
        assert [event.name for event in states] == ["before the first iteration", *names]
        for loop, before, after in zip(loops, states, states[1:], strict=False):
            assert loop.end is not None
            assert before.start <= loop.start <= loop.end <= after.start
    empty, busy = events(shown, "state", 0)[:2]
    assert empty.details["held by request"] == []
    assert "req-000 (extend)" in str(busy.details["slot 0"]).replace(", req-001", "")
    held = busy.details["held by request"]
    assert isinstance(held, list)
    assert held[0].startswith("req-000: slot ")
    assert held[0].endswith(" 40 KV tokens")
    assert str(busy.details["KV tokens in use"]).startswith("70 of ")


def test_messages_between_stages(page: Page) -> None:
    found = list(arrows(page.timeline("test_generate[pp2]")))
    assert found.count(("message", "0: send to rank 1", "1: recv from rank 0")) > 10
    assert any(kind == "collective" for kind, _, _ in found)


def test_memory_copies_and_logs(page: Page) -> None:
    shown = page.timeline("test_generate[pp2]")
    memory = [event.name for event in events(shown, "memory", 0)]
    assert "KV taken: 70 tokens" in memory
    assert "slot taken: req-000, req-001" in memory
    copies = {event.name.partition(" int")[0] for event in events(shown, "copy", 0)}
    assert "H2D async" in copies
    assert all(event.stack for event in events(shown, "log"))


def test_no_event_was_lost_or_failed(page: Page) -> None:
    for anchor, shown in page.timelines().items():
        assert [lane.note for lane in shown.lanes] == [""] * len(shown.lanes), anchor


def test_a_perturbation(page: Page) -> None:
    faults = events(page.timeline("test_disturbed[pp2]"), "fault")
    assert {fault.name for fault in faults} == {"skew"}


def test_kv_goes_from_prefill_to_decode(page: Page) -> None:
    shown = page.timeline("test_abort[prefill1-decode1]")
    assert [lane.title for lane in shown.lanes] == [
        "rank 0: prefill stage 0 of 1",
        "rank 1: decode stage 0 of 1",
    ]
    (link,) = [link for link in shown.links if link.kind == "kv"]
    source, target = shown.events[link.source], shown.events[link.target]
    assert (source.lane, source.name) == (0, "send KV of 40 tokens")
    assert (target.lane, target.name) == (1, "KV transfer: Success")


def test_an_abort(page: Page) -> None:
    shown = page.timeline("test_abort[prefill1-decode1]")
    failed = [event for event in events(shown, "transfer") if event.name.endswith("Failed")]
    assert failed != []
    logs = [event for event in events(shown, "log") if "Aborted by AbortReq" in event.name]
    assert logs != []
    queued = [str(state.details) for state in events(shown, "state", 1)]
    assert any("'aborted'" in state for state in queued)
    assert "aborted" not in queued[-1]


def test_a_fault_of_a_test(page: Page) -> None:
    shown = page.timeline("test_slow_transfer[prefill1-decode1]")
    assert {(fault.lane, fault.name) for fault in events(shown, "fault")} == {(0, "slow_transfer")}


def test_the_trace_has_all_lanes(page: Page) -> None:
    threads = {str(event["args"]) for event in page.trace() if event["name"] == "thread_name"}
    for words in ("rank 0: prefill stage 0 of 1, transfer", "rank 1: stage 1 of 2, work"):
        assert any(words in thread for thread in threads)
