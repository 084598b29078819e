"""One role stands still, as a process that hangs in a forward, while the other one goes on.

The other role gives up what it waits for when SGLang's time limit is over, and goes on with all
other requests. The role that stood still must then come to the same end: no room, slot or page is
lost, and no token of a dead request comes out. If it goes on in time, nothing has happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of, settle_and_leave

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Fault
    from pytest_pprank.sglang.driver.disagg_side import Side

CHUNK = 64
LIMIT = 300
"""Seconds: SGLang's limits for a handshake and for a transfer."""
SOON = 16
"""Iterations within which a role has noticed that a time limit is over."""

pytestmark = [
    pytest.mark.sglang(chunked_prefill_size=CHUNK),
    # SGLang logs failures and time-outs
    pytest.mark.pprank(prefill=2, decode=1, sanitize="-logs"),
]
# transfers are delayed by iterations of prefill, which does none; requests overtake each other
prefill_stands = pytest.mark.pprank(perturb="-transfers,-polls")
each_state = pytest.mark.parametrize(
    "state", ["bootstrapping", "waiting", "prompt", "transferring"]
)


@pytest.fixture(autouse=True)
def _frozen(disagg: Disagg) -> Iterator[None]:
    with disagg.clock.frozen():
        yield


def bring(disagg: Disagg, state: str) -> tuple[str, Fault | None]:
    """Bring a request into a state of `disagg.state` on prefill, or into the middle of its prompt
    (``prompt``); also return what blocks its transfer.
    """
    if state == "transferring":
        held = disagg.slow_transfer(stages=[0, 1])
        rid = disagg.submit(2 * CHUNK + 5, 6)
        disagg.run_until_state(rid, "transferring", role="prefill")
        return rid, held
    first = disagg.submit(5 * CHUNK, 6)
    second = disagg.submit(CHUNK + 3, 6) if state == "waiting" else first
    disagg.step()
    disagg.run_until(lambda: disagg.chunks_done(first) >= 2)
    return second, None


def stop_in(disagg: Disagg, role: str, state: str) -> tuple[str, Fault | None]:
    """Stop a role when a request is in a state (see `bring`) while another one is decoded.

    ``bootstrapping``: the request is sent when the role stands still already.
    """
    decoding = disagg.submit(30, 16)
    disagg.run_until(lambda: disagg.results[decoding].token_ids)
    if state == "bootstrapping":
        disagg.stop(role)
        return disagg.submit(40, 6), None
    found = bring(disagg, state)
    disagg.stop(role)
    return found


def stop_in_all_states(disagg: Disagg, role: str) -> Fault:
    """Stop a role while there is a request in each state; return what blocks a transfer."""
    decoding = disagg.submit(30, 40)
    disagg.run_until(lambda: disagg.results[decoding].token_ids)
    _, held = bring(disagg, "transferring")
    bring(disagg, "waiting")
    disagg.stop(role)
    disagg.submit(40, 6)
    assert held is not None
    return held


def run_until_free(disagg: Disagg, side: Side) -> None:
    """Run until a role has no requests, and no slot that belongs to one, on any stage."""
    disagg.run_until(
        lambda: (
            not any(view.rids or view.request_slots or view.metadata_slots for view in side.stages)
        )
    )


def resume(disagg: Disagg, role: str) -> None:
    """Let a role go on until nothing is under way; its own time limits have not begun yet."""
    disagg.resume(role)
    if is_older_than("0.5.20"):
        # what is aborted before prefill has it ends there by prefill's time limit: known bug
        # prefill-not-told-of-abort-before-it-has-the-request
        disagg.step(SOON)
        disagg.clock.advance(LIMIT)
    disagg.drain()


def assert_timed_out(side: Side, rid: str) -> None:
    reason = side.results[rid].finish_reason or {}
    assert reason.get("type") == "abort", f"{side.name}: {rid}: {reason}"
    assert "timed out" in str(reason.get("message")), f"{side.name}: {rid}: {reason}"


def check(disagg: Disagg, *failed: str) -> None:
    """Check as `settle_and_leave`, after one more request to both roles."""
    disagg.drain()
    disagg.generate([44], 4)
    settle_and_leave(disagg, *failed)


@pytest.mark.parametrize("role", [pytest.param("prefill", marks=prefill_stands), "decode"])
def test_role_that_goes_on_in_time(disagg: Disagg, role: str) -> None:
    held = stop_in_all_states(disagg, role)
    disagg.step(SOON)
    disagg.clock.advance(LIMIT - 1)
    disagg.step(SOON)
    held.release()
    disagg.step(SOON)
    disagg.resume(role)
    check(disagg)


@pytest.mark.parametrize(
    "role",
    [
        pytest.param("prefill", marks=prefill_stands),
        pytest.param(
            "decode", marks=pytest.mark.pprank(known_bug="abort-of-a-prompt-on-prefill-is-lost")
        ),
    ],
)
def test_aborts_while_a_role_stands_still(disagg: Disagg, role: str) -> None:
    """The other role ends them at once. When the role goes on, no token comes out, but for the last
    one of a request that was decoded.
    """
    held = stop_in_all_states(disagg, role)
    dead = list(disagg.results)
    other = disagg.decode if role == "prefill" else disagg.prefill
    for rid in dead:
        disagg.abort(rid, in_time=False)
    disagg.step(SOON)
    held.release()
    run_until_free(disagg, other)
    before = {rid: len(disagg.results[rid].token_ids) for rid in dead}
    resume(disagg, role)
    for rid in dead:
        assert len(disagg.results[rid].token_ids) <= before[rid] + bool(before[rid]), rid
    check(disagg, *dead)


@prefill_stands
@each_state
def test_prefill_that_stands_too_long(disagg: Disagg, state: str) -> None:
    """Decode gives the request up, and gets its memory back before prefill goes on."""
    rid, held = stop_in(disagg, "prefill", state)
    disagg.run_until(lambda: any(result.finished for result in disagg.results.values()))
    dead = [rid for rid, result in disagg.results.items() if not result.finished]
    assert rid in dead
    disagg.clock.advance(LIMIT, role="decode")
    disagg.run_until(lambda: all(disagg.results[rid].finished for rid in dead))
    if held is not None:
        held.release()
    run_until_free(disagg, disagg.decode)
    assert not any(view.kv_tokens for view in disagg.decode.stages)
    resume(disagg, "prefill")
    for rid in dead:
        assert_timed_out(disagg.decode, rid)
        assert end_of(disagg.prefill.results[rid]) == "abort"
        assert not disagg.results[rid].token_ids
    check(disagg, *dead)


@each_state
def test_decode_that_stands_too_long(disagg: Disagg, state: str) -> None:
    """Prefill lets go of the handshakes that do not come, and of all that it has sent. What was
    sent is there when decode goes on.
    """
    rid, held = stop_in(disagg, "decode", state)
    late = disagg.submit(50, 5)
    disagg.step(SOON)
    disagg.clock.advance(LIMIT)
    disagg.run_until(lambda: disagg.prefill.results[late].finished)
    if held is None:
        run_until_free(disagg, disagg.prefill)
    ended = [result for result in disagg.prefill.results.values() if result.finished]
    dead = [result.rid for result in ended if end_of(result) == "abort"]
    assert late in dead
    assert rid in dead or state != "bootstrapping"
    for each in dead:
        assert_timed_out(disagg.prefill, each)
    disagg.resume("decode")
    disagg.step(SOON)
    if held is not None:
        assert_timed_out(disagg.decode, rid)
        dead.append(rid)
        held.release()
    disagg.clock.advance(LIMIT)
    check(disagg, *dead)
