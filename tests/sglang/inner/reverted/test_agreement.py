"""Prefill and decode that consider something done too early: what it takes to show that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank

pytestmark = pytest.mark.pprank(prefill=2, decode=1, sanitize="-kv")


def perturbed_or_not(perturbed: str) -> pytest.MarkDecorator:
    marks = {"alone": "none", "perturbed": perturbed}
    return pytest.mark.parametrize(
        "how", [pytest.param(k, marks=pytest.mark.pprank(perturb=v)) for k, v in marks.items()]
    )


# several requests: whether a stage learns so late that it matters also depends on handshake threads
@pytest.mark.pprank(perturb="131:polls")
def test_stages_that_hear_late(disagg: Disagg) -> None:
    for number in range(10):
        disagg.submit(17, 2, rid=f"trusted{number}")
        disagg.drain()


# with this seed, stage 1 delays its first transfer by 87 iterations
@perturbed_or_not("651:transfers")
def test_stage_whose_transfer_takes_long(disagg: Disagg, how: str) -> None:  # noqa: ARG001
    disagg.late_poll(stages=[0], iterations=40, role="prefill")  # enough for stage 1 alone
    rid = disagg.submit(17, 2, rid="trusted")

    def done() -> bool:
        time.sleep(0.01)  # else a busy machine does 87 iterations before stage 0 has sent its KV
        return disagg.results[rid].finished

    disagg.run_until(done)
    disagg.drain()


@perturbed_or_not("1:metadata")
def test_slot_that_still_has_the_last_room(disagg: Disagg, how: str, pprank: Pprank) -> None:  # noqa: ARG001
    slots = disagg.scheduler.req_to_metadata_buffer_idx_allocator.size
    assert_tokens_equal_reference(disagg.generate([5] * (8 + max(pprank.gather(slots))), 2))


def test_request_lost_after_agreement(disagg: Disagg) -> None:
    rid = disagg.submit(30, to="decode", rid="lonely")
    disagg.step()
    ready = "WaitingForInput"
    disagg.run_until(lambda: all(ready in v.rooms.values() for v in disagg.prefill.stages))
    disagg.lose_room(stages=[1])
    disagg.forward(rid, to="prefill")
    disagg.run_until_state(rid, "transferring", role="prefill")
