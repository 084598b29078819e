"""Requests through prefill and decode: tokens equal the reference, and all memory is freed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.driver.series import StagesDiffer
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank

CHUNK = 64
FREED_EARLY = "decode-frees-what-an-aborted-transfer-still-writes"
_DEAD_THREAD = "ignore::pytest.PytestUnhandledThreadExceptionWarning"

pytestmark = [
    pytest.mark.sglang(chunked_prefill_size=CHUNK),
    # independent of --pp-size; a test near the end has more stages of prefill
    pytest.mark.pprank(prefill=2, decode=1),
]


def settle(disagg: Disagg, *, allow_failed_rooms: bool = False) -> None:
    """Run until nothing is under way; check the tokens of finished requests, and the KV."""
    disagg.drain()
    finished = [result for result in disagg.results.values() if end_of(result) != "abort"]
    if finished:
        assert_tokens_equal_reference(finished)
    assert_kv_balanced(disagg.scheduler, allow_failed_rooms=allow_failed_rooms)


def test_one_request(disagg: Disagg) -> None:
    assert_tokens_equal_reference(disagg.generate([17]))
    assert_kv_balanced(disagg.scheduler)


def test_requests_of_many_lengths(disagg: Disagg) -> None:
    lengths = [1, 2, 31, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK - 7]
    results = disagg.generate(lengths, logprobs=True)
    assert len(results[-1].extends) >= 5
    assert all(len(result.logprobs) == len(result.token_ids) for result in results)
    settle(disagg)


def test_requests_that_come_one_after_another(disagg: Disagg) -> None:
    for length in (70, 5, 200, 12):
        disagg.submit(length, 6)
        disagg.step(3)
    settle(disagg)


def test_more_requests_than_may_run(disagg: Disagg) -> None:
    disagg.generate([10 + 5 * index for index in range(32)], max_new_tokens=3)
    settle(disagg)


def test_prefix_that_is_cached(disagg: Disagg) -> None:
    prompt = [*range(1000, 1200)]
    disagg.generate([prompt])
    results = disagg.generate([[*prompt, 7, 8, 9], [*prompt[:120], 5], prompt])
    assert [result.cached_tokens for result in results] == [200, 120, 199]
    settle(disagg)


def test_abort_of_what_only_prefill_knows(disagg: Disagg) -> None:
    rid = disagg.submit(30, to="prefill")
    disagg.abort_when(rid, "bootstrapping", at="prefill", role="prefill")
    settle(disagg)
    assert end_of(disagg.prefill.results[rid]) == "abort"


@pytest.mark.pprank(known_bug="prefill-not-told-of-abort-before-it-has-the-request")
def test_abort_of_what_only_decode_knows(disagg: Disagg) -> None:
    """Prefill gets the request after decode has aborted it."""
    rid = disagg.submit(30, to="decode")
    disagg.abort_when(rid, "transferring", role="decode")
    disagg.drain()
    disagg.forward(rid, to="prefill")
    settle(disagg)
    assert end_of(disagg.results[rid]) == "abort"
    assert end_of(disagg.prefill.results[rid]) == "abort"


# where that bug shows, a thread of decode has died, which pytest reports as a warning
@pytest.mark.filterwarnings(*([_DEAD_THREAD] if is_older_than("0.5.17") else []))
@pytest.mark.pprank(known_bug=("threads-of-prefill-mix-their-messages", FREED_EARLY))
def test_abort_while_transferring(disagg: Disagg) -> None:
    slow = disagg.slow_transfer(stages=[0])
    aborted, other = disagg.submit(30), disagg.submit(40)
    disagg.run_until_state(aborted, "transferring", role="prefill")
    disagg.abort_when(aborted, "transferring")
    disagg.step(4)
    slow.release()
    settle(disagg)
    assert [end_of(disagg.results[rid]) for rid in (aborted, other)] == ["abort", "length"]


def test_abort_while_decoding(disagg: Disagg) -> None:
    aborted, _ = disagg.submit(40, 100), disagg.submit(41, 12)
    disagg.abort_when(aborted, "decoding")
    settle(disagg)
    assert end_of(disagg.results[aborted]) == "abort"
    assert len(disagg.results[aborted].token_ids) < 100


@pytest.mark.pprank(sanitize="-logs")
def test_transfer_that_fails(disagg: Disagg) -> None:
    """It fails on the first stage of prefill, after the last stage has written its part."""
    disagg.fail_transfer(stages=[0])
    slow = disagg.slow_transfer(stages=[0])  # first blocked, then refused
    failed = disagg.submit(2 * CHUNK + 5)
    disagg.step()
    disagg.run_until(lambda: "Success" in disagg.prefill.stages[-1].rooms.values())
    slow.release()
    disagg.drain()
    assert end_of(disagg.results[failed]) == "abort"
    assert_kv_balanced(disagg.scheduler)


@pytest.mark.pprank(sanitize="-logs", known_bug="decode-frees-what-prefill-still-writes")
def test_transfer_that_fails_while_another_stage_writes(disagg: Disagg) -> None:
    slow = disagg.slow_transfer(stages=[disagg.prefill_stages - 1])
    disagg.fail_transfer(stages=[0])
    failed = disagg.submit(30)
    disagg.run_until(lambda: disagg.results[failed].finish_reason)
    slow.release()
    disagg.drain()
    disagg.leave()
    assert end_of(disagg.results[failed]) == "abort"
    assert_kv_balanced(disagg.scheduler)


def test_stage_that_hears_late(disagg: Disagg, pprank: Pprank) -> None:
    """The stages of prefill release a request together, after the last one has sent its KV."""
    last = disagg.prefill_stages - 1
    late = disagg.late_poll(stages=[last], iterations=9, role="prefill")
    disagg.generate([30, CHUNK + 3])
    if (pprank.role, pprank.stage) == ("prefill", last):
        assert late.hits
    settle(disagg)


# the iteration in which the room is lost is counted from the stage's first poll of it as ready; if
# other stages poll it late, it is lost while they agree, which SGLang (0.5.21) does not survive
@pytest.mark.pprank(perturb="-polls", known_bug="prefill-stages-start-other-requests-than-agreed")
def test_request_given_up_between_agreement_and_start(disagg: Disagg) -> None:
    """One stage of prefill learns that decode has aborted a request after all stages agreed to
    start it: either all stages start it, or none (PR 31869).
    """
    rid = disagg.submit(30, to="decode")
    disagg.step()
    ready = "WaitingForInput"
    disagg.run_until(lambda: all(ready in v.rooms.values() for v in disagg.prefill.stages))
    lost = disagg.lose_room(stages=[disagg.prefill_stages - 1])
    disagg.forward(rid, to="prefill")
    disagg.run_until_state(rid, "transferring", role="prefill")
    # not while its KV is being written: the known bug decode-frees-what-prefill-still-writes
    disagg.run_until(lambda: "Success" in disagg.prefill.stages[0].rooms.values())
    lost.release()
    disagg.abort(rid)
    settle(disagg)


@pytest.mark.pprank(sanitize="-logs", known_bug="prefill-stages-differ-by-room-lost-while-agreeing")
def test_room_that_is_lost_while_the_stages_agree(disagg: Disagg, pprank: Pprank) -> None:
    rid = disagg.submit(30, to="decode")
    disagg.step()
    ready = "WaitingForInput"
    disagg.run_until(lambda: all(ready in v.rooms.values() for v in disagg.prefill.stages))
    last = disagg.prefill_stages - 1
    lost = disagg.lose_room(stages=[last], rounds=0)
    disagg.forward(rid, to="prefill")
    for _ in range(8):  # step by step: a deadlock follows soon
        disagg.step()
    if (pprank.role, pprank.stage) == ("prefill", last):
        assert lost.hits
    lost.release()
    disagg.abort(rid)
    settle(disagg)
    assert end_of(disagg.results[rid]) == "abort"


@pytest.mark.pprank(perturb="-polls")  # the first request must be the first to be ready
def test_abort_while_waiting_for_prefill(disagg: Disagg) -> None:
    """It already has a metadata slot, but no KV (PR 17483).

    `release_aborted_prefill_waiting_req` (0.5.21) does not clear the sender, so its room stays.
    """
    disagg.submit(8 * CHUNK)
    aborted = disagg.submit(30)
    disagg.step()
    disagg.run_until(
        lambda: all(aborted in view.queues["waiting"] for view in disagg.prefill.stages)
    )
    assert all(view.metadata_slots == 2 for view in disagg.prefill.stages)
    disagg.abort(aborted)
    settle(disagg, allow_failed_rooms=True)
    assert end_of(disagg.results[aborted]) == "abort"


@pytest.mark.pprank(known_bug="prefill-keeps-room-of-request-aborted-while-waiting")
def test_no_room_is_left_by_an_abort_in_the_waiting_queue(disagg: Disagg) -> None:
    disagg.submit(8 * CHUNK)
    aborted = disagg.submit(30)
    disagg.step()
    disagg.run_until(
        lambda: all(aborted in view.queues["waiting"] for view in disagg.prefill.stages)
    )
    disagg.abort(aborted)
    disagg.drain()
    disagg.leave()
    assert_kv_balanced(disagg.scheduler, allow_failed_rooms=True)
    assert_kv_balanced(disagg.scheduler)


def test_abort_in_the_middle_of_its_prompt(disagg: Disagg) -> None:
    """Some chunks have been sent, one is being computed, and decode waits for the rest.

    Prefill keeps the room of the request (0.5.21), as after an abort in its waiting queue.
    """
    aborted, _ = disagg.submit(8 * CHUNK), disagg.submit(2 * CHUNK + 3)
    disagg.run_until(lambda: disagg.chunks_done(aborted) >= 3)
    assert disagg.is_chunking(aborted)
    disagg.abort(aborted, in_time=False)
    settle(disagg, allow_failed_rooms=True)
    assert end_of(disagg.results[aborted]) == "abort"


@pytest.mark.pprank(known_bug="remote-call-waits-for-later-stages")
def test_control_requests_while_kv_is_on_its_way(disagg: Disagg) -> None:
    """Each role answers for itself: KV that is being sent or written is not flushed."""
    calls = []
    disagg.scheduler.note_call = lambda: calls.append(1)
    disagg.generate([50], max_new_tokens=3)
    slow = disagg.slow_transfer(stages=[disagg.prefill_stages - 1])
    rid = disagg.submit(2 * CHUNK + 5)
    disagg.run_until_state(rid, "transferring", role="prefill")
    flush = disagg.control("flush_cache")
    call = disagg.control("rpc", method="note_call")
    flush.wait()
    call.wait()
    assert {role: answer.success for role, answer in flush.answers.items()} == {
        "prefill": False, "decode": False
    }  # fmt: skip
    assert all(answer.success for answer in call.answers.values())
    assert len(calls) == 1, "how often it was called on this rank"
    slow.release()
    disagg.drain()
    assert end_of(disagg.results[rid]) == "length"
    flush = disagg.control("flush_cache", role="prefill", wait=True)
    assert flush.answer.success
    settle(disagg)


@pytest.mark.pprank(known_bug="prefill-computes-aborted-prompt-to-its-end")
def test_abort_ends_a_prompt_at_once(disagg: Disagg) -> None:
    aborted, _ = disagg.submit(8 * CHUNK), disagg.submit(2 * CHUNK + 3)
    disagg.run_until(lambda: disagg.chunks_done(aborted) >= 3)
    disagg.abort(aborted)
    settle(disagg, allow_failed_rooms=True)


@pytest.mark.pprank(sanitize="-logs")
def test_stage_that_is_not_done_after_all(disagg: Disagg) -> None:
    """A stage polls its KV as sent, and all agree to release the request, but then it polls the KV
    as not sent: SGLang continues (PR 20686), though that stage keeps the request.
    """
    if disagg.prefill_stages == 1:
        pytest.skip("stages agree where there are two or more")
    disagg.flaky_poll(stages=[disagg.prefill_stages - 1], role="prefill")
    disagg.abandon("a stage of prefill keeps a request for ever")
    with pytest.raises(StagesDiffer, match="did not let the same requests leave their queues"):
        disagg.generate([30])


@pytest.mark.sglang(max_running_requests=1)
def test_one_request_at_a_time(disagg: Disagg) -> None:
    disagg.generate([50, 3 * CHUNK, 60], max_new_tokens=4)
    settle(disagg)


little_kv = pytest.mark.sglang(decode={"max_total_tokens": 128, "num_reserved_decode_tokens": 2})


@little_kv
def test_requests_that_are_retracted(disagg: Disagg) -> None:
    results = disagg.generate([20 + index for index in range(5)], max_new_tokens=14)
    assert any(result.retractions for result in results)
    settle(disagg)


@little_kv
@pytest.mark.pprank(perturb="-polls")  # the first request must be ready, and get its KV, first
def test_abort_while_decode_has_no_room(disagg: Disagg) -> None:
    """Decode has completed the handshake, and waits for memory for the request's KV."""
    disagg.submit(100, 12)
    aborted, _ = disagg.submit(60, 5), disagg.submit(50, 5)
    disagg.run_until(lambda: disagg.state(aborted)["decode"] == ("bootstrapping",))
    disagg.step(8)
    assert disagg.state(aborted)["decode"] == ("bootstrapping",)
    disagg.abort(aborted)
    settle(disagg)
    assert end_of(disagg.results[aborted]) == "abort"


@pytest.mark.pprank(known_bug="profiler-fails-on-first-stage")
@pytest.mark.sglang(chunked_prefill_size=2 * CHUNK, prefill={"enable_dynamic_chunking": True})
def test_chunks_of_predicted_sizes(disagg: Disagg) -> None:
    """Later chunks are smaller than the first one; the KV of each is sent with its own size."""
    results = disagg.generate([900, 40, 5 * CHUNK], 4, logprobs=True)
    sizes = [end - start for start, end in results[0].extends]
    assert len({*sizes[:-1]}) > 1, f"chunks of {sizes} tokens"
    settle(disagg)


@pytest.mark.pprank(prefill=1, decode=1, known_bug="aborted-prompt-is-computed-to-its-end")
def test_abort_ends_a_prompt_at_once_on_one_stage(disagg: Disagg) -> None:
    aborted, _ = disagg.submit(8 * CHUNK), disagg.submit(2 * CHUNK + 3)
    disagg.run_until(lambda: disagg.chunks_done(aborted) >= 3)
    disagg.abort(aborted)
    settle(disagg, allow_failed_rooms=True)
    assert end_of(disagg.prefill.results[aborted]) == "abort"


# late metadata: the known bug decode-stages-differ-by-late-metadata
@pytest.mark.pprank(prefill=2, decode=2, perturb="-metadata")
class TestTwoStagesOfDecode:
    def test_requests_of_many_lengths(self, disagg: Disagg) -> None:
        disagg.generate([1, 3 * CHUNK + 1, 31, CHUNK, 2 * CHUNK - 1], 6, logprobs=True)
        settle(disagg)

    @pytest.mark.pprank(known_bug="decode-stages-differ-by-late-metadata")
    def test_metadata_that_comes_late(self, disagg: Disagg, pprank: Pprank) -> None:
        """The test passes if it is late on the first stage only, or with one stage."""
        late = disagg.late_metadata(stages=[1])
        disagg.submit(30, 6)
        for _ in range(60):  # step by step: a deadlock follows soon
            disagg.step()
        if (pprank.role, pprank.stage) == ("decode", 1):
            assert late.hits
        settle(disagg)

    def test_prefix_that_is_cached(self, disagg: Disagg) -> None:
        """Prefill finds it in its cache; decode gets all of it, in this turn and in the next."""
        prompt = [*range(1000, 1000 + 3 * CHUNK)]
        disagg.generate([prompt], 3)
        results = disagg.generate([[*prompt, 7, 8], [*prompt[:120], 5], prompt], logprobs=True)
        assert [result.cached_tokens for result in results] == [192, 120, 191]
        settle(disagg)

    def test_abort_while_decoding(self, disagg: Disagg) -> None:
        aborted = []
        for turn in range(2):
            aborted.append(disagg.submit(40, 100))
            disagg.submit(41, 12)
            disagg.run_until_state(aborted[-1], "decoding")
            disagg.step(1 + turn)
            disagg.abort(aborted[-1])
        settle(disagg)
        assert {end_of(disagg.results[rid]) for rid in aborted} == {"abort"}

    @pytest.mark.pprank(known_bug="decode-stage-keeps-failed-transfer")
    def test_abort_while_transferring(self, disagg: Disagg) -> None:
        """The test passes with one stage of decode."""
        slow = disagg.slow_transfer(stages=[1])
        aborted, _ = disagg.submit(30), disagg.submit(40)
        disagg.run_until_state(aborted, "transferring", role="prefill")
        disagg.abort_when(aborted, "transferring")
        disagg.step(4)
        slow.release()
        settle(disagg)

    def test_abort_of_what_only_prefill_knows(self, disagg: Disagg) -> None:
        rid = disagg.submit(30, to="prefill")
        disagg.abort_when(rid, "bootstrapping", at="prefill", role="prefill")
        settle(disagg)


@pytest.mark.pprank(prefill=4, decode=1)
def test_four_stages_of_prefill(disagg: Disagg) -> None:
    disagg.generate([17, 3 * CHUNK + 1])
    settle(disagg)


@pytest.mark.sglang(model_path="tiny:llama:5")  # which has no path for DP attention
@pytest.mark.pprank(dp=1, known_bug="kv-of-uneven-stages-lands-in-other-layers")
def test_stages_of_which_one_has_a_layer_more(disagg: Disagg) -> None:
    assert_tokens_equal_reference(disagg.generate([17]))
