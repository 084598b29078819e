"""Prefill and decode with one stage each: the loops that SGLang uses without a pipeline.

With and without the overlap schedule. The stages of a pipeline use other loops (test_disagg).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank

CHUNK = 32

pytestmark = [
    pytest.mark.pprank(prefill=1, decode=1),
    pytest.mark.sglang(chunked_prefill_size=CHUNK),
]
schedules = [
    pytest.param(marks=pytest.mark.sglang(disable_overlap_schedule=True), id="normal"),
    pytest.param(marks=pytest.mark.sglang(disable_overlap_schedule=False), id="overlap"),
]
each_schedule = pytest.mark.parametrize((), schedules)


def prefill_early(**more: int) -> pytest.MarkDecorator:
    """Let prefill compute prompts before the handshake is done; `more`: other args of prefill."""
    # before 0.5.16, where the arg has another name, such a request may stay for ever (PR 31075)
    if is_older_than("0.5.16"):
        return pytest.mark.skip(reason="no optimistic_prefill_attempts before 0.5.16")
    return pytest.mark.sglang(prefill={"optimistic_prefill_attempts": 2, **more})


early_prefill = prefill_early()


def settle(disagg: Disagg, *aborted: str) -> None:
    """Check that aborted requests end as such, all tokens are right, and all memory was freed."""
    disagg.drain()
    for rid, result in disagg.results.items():
        assert end_of(result) == ("abort" if rid in aborted else "length")
    finished = [result for rid, result in disagg.results.items() if rid not in aborted]
    assert_tokens_equal_reference(finished)
    assert_kv_balanced(disagg.scheduler, allow_failed_rooms=True)


def test_one_stage_each(disagg: Disagg) -> None:
    disagg.generate([5, 3 * CHUNK + 1], logprobs=True)
    rid = disagg.submit(30, 100)
    disagg.abort_when(rid, "decoding")
    settle(disagg, rid)


@each_schedule
def test_no_forward_runs_while_paused(disagg: Disagg) -> None:
    """While paused, weights may be replaced: requests wait, wherever they are on either role."""
    decoding = disagg.submit(20, 40)
    disagg.run_until(lambda: len(disagg.results[decoding].token_ids) >= 2)
    disagg.submit(6 * CHUNK, 4)
    disagg.step(2)
    disagg.control("pause_generation", mode="in_place", wait=True)
    disagg.step(2)  # let the outputs of launched forwards arrive
    before = len(disagg.forwards)
    disagg.submit(2 * CHUNK + 3, 3)
    disagg.step(8)
    ran = [str(forward) for forward in disagg.forwards[before:]]
    assert not ran, "forwards of this role while it is paused"
    disagg.control("continue_generation", wait=True)
    settle(disagg)


@early_prefill
@each_schedule
def test_prompt_that_is_computed_before_decode_has_the_request(disagg: Disagg) -> None:
    """Prefill does not wait for decode; it sends the KV once decode has said where to."""
    early = disagg.submit(2 * CHUNK + 5, 6, to="prefill")
    disagg.run_until(lambda: len(disagg.prefill.results[early].extends) >= 3)
    disagg.step(3)
    disagg.forward(early, to="decode")
    disagg.submit(17, 5)
    settle(disagg)


@early_prefill
@each_schedule
def test_abort_of_a_prompt_that_was_computed_early(disagg: Disagg, pprank: Pprank) -> None:
    early = disagg.submit(2 * CHUNK + 5, 6, to="prefill")
    disagg.run_until(lambda: len(disagg.prefill.results[early].extends) >= 3)
    disagg.step(3)
    disagg.abort(early, role="prefill")
    disagg.submit(17, 5)
    disagg.drain()
    if pprank.role == "prefill":
        reason = disagg.prefill.results[early].finish_reason or {}
        assert reason["type"] == "abort"
    assert_kv_balanced(disagg.scheduler, allow_failed_rooms=True)


@prefill_early(max_running_requests=1)
@pytest.mark.pprank(known_bug="early-prompt-keeps-the-last-slot")
@each_schedule
def test_prompt_that_was_computed_early_gives_way(disagg: Disagg) -> None:
    """It has prefill's only slot, and decode does not know it: others come first."""
    early = disagg.submit(2 * CHUNK + 5, 6, to="prefill")
    disagg.run_until(lambda: len(disagg.prefill.results[early].extends) >= 3)
    disagg.step(3)
    others = [disagg.submit(17 + index, 5) for index in range(2)]
    disagg.run_until(lambda: all(disagg.results[rid].finished for rid in others))
    disagg.forward(early, to="decode")
    settle(disagg)


@prefill_early(max_running_requests=1)
@pytest.mark.pprank(known_bug="early-prompt-keeps-the-last-slot")
@each_schedule
def test_prompts_that_gave_way_hold_nothing(disagg: Disagg) -> None:
    """As many as prefill has slots for transfers were computed early as often as it tries to."""
    early = [disagg.submit(CHUNK + 5 + index, 6, to="prefill") for index in range(3)]
    for index in range(9):
        other = disagg.submit(17 + index, 3)
        disagg.run_until(lambda: disagg.results[other].finished, max_iterations=400)  # noqa: B023
    for rid in early:
        disagg.forward(rid, to="decode")
    settle(disagg)


@early_prefill
@each_schedule
def test_pause_amid_a_prompt_that_is_computed_early(disagg: Disagg) -> None:
    """After the pause it gives way to a request that decode knows."""
    gives_way_after_pause(disagg, "in_place")


@early_prefill
@pytest.mark.sglang(disable_overlap_schedule=False)
@pytest.mark.pprank(known_bug="early-prompt-lost-after-a-pause")
def test_pause_that_leaves_no_result_of_a_prompt_in_flight(disagg: Disagg) -> None:
    """As that pause: it waits for the results, which would have led the prompt to its queue."""
    gives_way_after_pause(disagg, "retract")


def gives_way_after_pause(disagg: Disagg, mode: str) -> None:
    early = disagg.submit(6 * CHUNK + 5, 4, to="prefill")
    disagg.run_until(lambda: len(disagg.prefill.results[early].extends) >= 2)
    disagg.control("pause_generation", role="prefill", mode=mode, wait=True)
    other = disagg.submit(17, 5)
    disagg.step(6)
    disagg.control("continue_generation", role="prefill", wait=True)
    disagg.run_until(lambda: disagg.results[other].finished)
    disagg.forward(early, to="decode")
    settle(disagg)
