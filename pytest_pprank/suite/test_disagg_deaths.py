"""All processes of one role are killed while there are requests in each state.

The other role ends the requests that need the dead one, with a reason, gets their memory back, and
goes on with all others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of
from pytest_pprank.suite.heartbeats import lose_prefill

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Fault, Pprank
    from pytest_pprank.sglang.driver.disagg_side import Side

CHUNK = 64
LIMIT = 300
"""Seconds: SGLang's limits for a handshake and for a transfer."""
KEPT = 30
"""Seconds for which decode keeps memory to which prefill may still write."""

pytestmark = [
    pytest.mark.sglang(chunked_prefill_size=CHUNK),
    # SGLang logs failures and time-outs
    pytest.mark.pprank(prefill=2, decode=1, sanitize="-logs"),
]


@pytest.fixture(autouse=True)
def _frozen(disagg: Disagg) -> Iterator[None]:
    with disagg.clock.frozen():
        yield


def requests_in_each_state(disagg: Disagg) -> Fault:
    """Let the first request be decoded, the second one transferred, the third one in the middle of
    its prompt, and the fourth one wait for its turn; return what blocks the transfer.
    """
    decoding = disagg.submit(30, 40)
    disagg.run_until(lambda: disagg.results[decoding].token_ids)
    held = disagg.slow_transfer(stages=[0, 1])
    moving = disagg.submit(2 * CHUNK + 5, 6)
    disagg.run_until_state(moving, "transferring", role="prefill")
    prompt = disagg.submit(5 * CHUNK, 6)
    disagg.submit(CHUNK + 3, 6)
    disagg.step()
    disagg.run_until(lambda: disagg.chunks_done(prompt) >= 2)
    return held


def assert_aborted(side: Side, rid: str, words: str) -> None:
    reason = side.results[rid].finish_reason or {}
    assert reason.get("type") == "abort", f"{side.name}: {rid}: {reason}"
    assert re.search(words, str(reason.get("message"))), f"{side.name}: {rid}: {reason}"


# where decode hangs, for as long as a test may take
soon: dict[str, float] = {"timeout": 60} if is_older_than("0.5.16") else {}


@pytest.mark.pprank(known_bug="decode-blocks-in-a-send-to-dead-prefill", **soon)
def test_prefill_dies(disagg: Disagg, pprank: Pprank) -> None:
    """Decode notices it by the missing heartbeats. What it has got is decoded to the end."""
    requests_in_each_state(disagg)
    disagg.kill("prefill")
    decoding, *lost = disagg.results
    lost.append(disagg.submit(50, 5))
    disagg.step(4)
    aborted = [lost.pop(0), lost.pop()]
    for rid in aborted:
        disagg.abort(rid)
    disagg.run_until(lambda: all(disagg.results[rid].finished for rid in aborted))
    assert not any(disagg.results[rid].finished for rid in lost)
    lose_prefill(disagg, pprank)
    disagg.run_until(lambda: all(disagg.results[rid].finished for rid in lost))
    assert not disagg.results[decoding].finished
    later = disagg.submit(60, 5)
    for _ in range(KEPT):
        disagg.clock.advance(1)  # decode looks for prefill once a second, and gives up
        disagg.step()
    disagg.drain()
    disagg.leave()
    for rid in aborted:
        assert_aborted(disagg.decode, rid, "Aborted by AbortReq")
    # a rank fails the request for what another one of its stage has noticed, and does not say what
    words = "Los(t|ing) connection with prefill" + "|from another rank" * (pprank.tp_size > 1)
    for rid in lost:
        assert_aborted(disagg.decode, rid, words)
    assert end_of(disagg.results[later]) == "abort"
    assert end_of(disagg.results[decoding]) == "length"
    assert_tokens_equal_reference(disagg.results[decoding])
    assert_kv_balanced(disagg.scheduler)


def test_decode_dies(disagg: Disagg) -> None:
    """Prefill notices it when it sends KV; without a handshake, when its time limit is over."""
    held = requests_in_each_state(disagg)
    disagg.kill("decode")
    decoded, moving, *others = disagg.prefill.results
    lonely, aborted = disagg.submit(50, 5), disagg.submit(51, 5)
    disagg.step(4)
    for rid in (others[-1], aborted):
        disagg.abort(rid, in_time=False)
    disagg.step(4)
    held.release()
    disagg.run_until(
        lambda: all(disagg.prefill.results[rid].finished for rid in (moving, *others, aborted))
    )
    assert not disagg.prefill.results[lonely].finished
    disagg.clock.advance(LIMIT)
    disagg.drain()
    disagg.leave()
    assert end_of(disagg.prefill.results[decoded]) == "length"
    for rid in (moving, others[0]):
        assert_aborted(disagg.prefill, rid, "Prefill transfer failed")
    assert end_of(disagg.prefill.results[others[-1]]) == "abort"  # or its transfer failed first
    assert_aborted(disagg.prefill, aborted, "Aborted by AbortReq")
    assert_aborted(disagg.prefill, lonely, "timed out")
    assert_kv_balanced(disagg.scheduler, allow_failed_rooms=True)
