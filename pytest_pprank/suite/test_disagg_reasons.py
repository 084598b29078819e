"""Finish reasons in prefill and decode: each role answers with its own reason, and a failed request
never looks successful.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.grammars import (
    NUMBERS,
    OTHERS,
    follows,
    needs_grammars,
    refuse_tokens,
    skip_where_there_are_no_grammars,
)

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank
    from pytest_pprank.sglang.driver.disagg_side import Side

CHUNK = 64
FAILED = 500
"""The status code of a request that failed through no fault of its own."""

pytestmark = [
    pytest.mark.sglang(chunked_prefill_size=CHUNK),
    # SGLang logs failures
    pytest.mark.pprank(prefill=2, decode=1, sanitize="-logs"),
]


def settle(disagg: Disagg, *ended: str, allow_failed_rooms: bool = False) -> None:
    """Run until nothing is under way; check the tokens of the requests not in `ended`."""
    disagg.drain()
    others = [result for rid, result in disagg.results.items() if rid not in ended]
    assert {end_of(result) for result in others} <= {"length"}
    if others:
        assert_tokens_equal_reference(others)
    assert_kv_balanced(disagg.scheduler, allow_failed_rooms=allow_failed_rooms)


def check_reason(side: Side, rid: str, words: str, status: int | None = None) -> None:
    """Check that a role has ended a request as aborted, with a message that contains `words`."""
    reason = side.results[rid].finish_reason
    assert reason is not None, f"{side.name}: {rid} is not finished"
    assert reason["type"] == "abort", f"{side.name}: {reason}"
    assert words in str(reason.get("message")), f"{side.name}: {reason}"
    assert status is None or reason["status_code"] == status, f"{side.name}: {reason}"


@pytest.mark.sglang(grammar_backend="xgrammar")
@needs_grammars[0]
@needs_grammars[1]
class TestGrammars:
    @pytest.fixture(autouse=True)
    def _grammars_work_here(self, pprank: Pprank) -> None:
        skip_where_there_are_no_grammars(pprank)

    @pytest.mark.parametrize("slow", [False, True], ids=["fast", "slow"])
    def test_grammar_that_fails_on_prefill(
        self, disagg: Disagg, pprank: Pprank, monkeypatch: pytest.MonkeyPatch, slow: bool
    ) -> None:
        """Its first token does not match the grammar: this shows while its KV is being sent
        (PR 30937), or, from SGLang 0.5.20 on, before the last part of it is sent.
        """
        if pprank.role == "prefill":
            refuse_tokens(monkeypatch, OTHERS)
        held = disagg.slow_transfer(stages=[1])
        if not slow:
            held.release()
        failing = disagg.submit(2 * CHUNK + 5, 4, regex=OTHERS)
        bound = disagg.submit(30, 4, regex=NUMBERS)
        disagg.submit(40, 6)
        disagg.step(12)
        held.release()
        disagg.run_until(lambda: disagg.prefill.results[failing].finished)
        if not disagg.results[failing].finished:
            disagg.abort(failing, role="decode")
        disagg.drain()
        disagg.leave()
        check_reason(disagg.prefill, failing, "Grammar accept_token failed", FAILED)
        settle(disagg, failing, bound, allow_failed_rooms=True)
        assert follows(disagg.results[bound].token_ids, NUMBERS)

    @pytest.mark.skipif(
        is_older_than("0.5.20"), reason="before 0.5.20 decode gets its KV and goes on"
    )
    @pytest.mark.pprank(known_bug="decode-not-told-of-failure-on-prefill")
    def test_decode_hears_of_a_grammar_that_fails_on_prefill(
        self, disagg: Disagg, pprank: Pprank, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if pprank.role == "prefill":
            refuse_tokens(monkeypatch, OTHERS)
        failing = disagg.submit(2 * CHUNK + 5, 4, regex=OTHERS)
        disagg.drain()
        check_reason(disagg.decode, failing, "", FAILED)

    def test_grammar_that_fails_on_decode(
        self, disagg: Disagg, pprank: Pprank, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if pprank.role == "decode":
            refuse_tokens(monkeypatch, OTHERS)
        failing = disagg.submit(40, 6, regex=OTHERS)
        bound = disagg.submit(30, 4, regex=NUMBERS)
        disagg.drain()
        disagg.leave()
        assert end_of(disagg.prefill.results[failing]) == "length"
        check_reason(disagg.decode, failing, "Grammar accept_token failed", FAILED)
        settle(disagg, failing, bound)


def fail_on(disagg: Disagg, stage: int) -> str:
    """Let a transfer fail on one stage of prefill after the other stage has sent its part."""
    disagg.fail_transfer(stages=[stage])
    slow = disagg.slow_transfer(stages=[stage])  # first blocked, then refused
    failed: str = disagg.submit(2 * CHUNK + 5)
    disagg.step()
    disagg.run_until(lambda: "Success" in disagg.prefill.stages[1 - stage].rooms.values())
    slow.release()
    disagg.drain()
    return failed


def test_transfer_that_fails(disagg: Disagg) -> None:
    failed = fail_on(disagg, stage=0)
    check_reason(disagg.prefill, failed, "Prefill transfer failed", FAILED)
    check_reason(disagg.decode, failed, "Decode transfer failed", FAILED)


@pytest.mark.pprank(known_bug="prefill-answers-by-its-first-stage-alone")
def test_transfer_that_fails_on_a_later_stage(disagg: Disagg) -> None:
    failed = fail_on(disagg, stage=1)
    check_reason(disagg.decode, failed, "Decode transfer failed", FAILED)
    check_reason(disagg.prefill, failed, "Prefill transfer failed", FAILED)


agreed_start = pytest.mark.skipif(
    is_older_than("0.5.17"),
    reason="before 0.5.17 prefill's stages may start other requests than agreed; here by chance",
)


freed_early = pytest.param(
    "transferring",
    marks=pytest.mark.pprank(known_bug="decode-frees-what-an-aborted-transfer-still-writes"),
)


@pytest.mark.parametrize("state", [pytest.param("waiting", marks=agreed_start), freed_early])
def test_abort_on_both_roles(disagg: Disagg, state: str) -> None:
    """An abort ends the request as aborted on both roles, whatever its state on prefill."""
    slow = disagg.slow_transfer(stages=[1])
    aborted, _ = disagg.submit(3 * CHUNK + 5), disagg.submit(40)
    disagg.run_until_state(aborted, state, role="prefill")
    disagg.abort(aborted, in_time=False)
    disagg.step(4)
    slow.release()
    settle(disagg, aborted, allow_failed_rooms=True)
    for side in (disagg.prefill, disagg.decode):
        check_reason(side, aborted, "")


in_agreement = pytest.mark.skipif(
    is_older_than("0.5.20"), reason="before 0.5.20 each stage goes by its own clock"
)


@in_agreement
def test_running_too_long(disagg: Disagg, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode ends it; prefill has finished with it long before."""
    late = disagg.submit(30, 200)
    disagg.run_until_state(late, "decoding")
    disagg.run_until(lambda: disagg.prefill.results[late].finished)  # it may hear of it later
    monkeypatch.setenv("SGLANG_REQ_RUNNING_TIMEOUT", "0.000001")
    disagg.run_until(lambda: disagg.results[late].finished)
    monkeypatch.delenv("SGLANG_REQ_RUNNING_TIMEOUT")
    check_reason(disagg.decode, late, "running timeout", 503)
    assert end_of(disagg.prefill.results[late]) == "length"
    settle(disagg, late)


@in_agreement
@pytest.mark.pprank(perturb="-polls")  # the long prompt must not become ready after the other one
def test_waiting_too_long(disagg: Disagg, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill ends it before its turn comes; decode does not learn of that by itself.

    The other request may end so, too, if its handshake takes longer.
    """
    first, late = disagg.submit(16 * CHUNK), disagg.submit(30)
    disagg.run_until(
        lambda: all(late in view.queues["waiting"] for view in disagg.prefill.stages),
    )
    monkeypatch.setenv("SGLANG_REQ_WAITING_TIMEOUT", "0.000001")
    disagg.run_until(lambda: disagg.prefill.results[late].finished)
    monkeypatch.delenv("SGLANG_REQ_WAITING_TIMEOUT")
    disagg.step(4 * disagg.prefill_stages)  # let the time-outs that were noted take effect
    check_reason(disagg.prefill, late, "waiting timeout", 503)
    reasons = {rid: disagg.prefill.results[rid].finish_reason for rid in (first, late)}
    ended = [rid for rid, reason in reasons.items() if reason and reason["type"] == "abort"]
    for rid in ended:
        check_reason(disagg.prefill, rid, "waiting timeout", 503)
        disagg.abort(rid, role="decode")
    settle(disagg, *ended, allow_failed_rooms=True)
    check_reason(disagg.decode, late, "")
