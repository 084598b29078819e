"""The engine: its inputs and outputs, and that all stages stay in lockstep."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import (
    UsageError,
    assert_kv_balanced,
    assert_ranks_agree,
    assert_tokens_equal_reference,
)

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank


def test_results_are_the_same_on_all_ranks(engine: Engine) -> None:
    results = engine.generate([300, [5, 6, 7]], max_new_tokens=3)
    assert [(r.rid, len(r.prompt), len(r.token_ids)) for r in results] == [
        ("req-000", 300, 3),
        ("req-001", 3, 3),
    ]
    assert results[0].finish_reason == {"type": "length", "length": 3}
    assert_ranks_agree([(r.rid, r.token_ids, r.finish_reason, r.extends) for r in results])


def test_stages_do_the_iterations_that_were_asked_for(engine: Engine, pprank: Pprank) -> None:
    engine.step(5)
    assert engine.iterations == 5 - pprank.stage
    engine.step()
    assert [view.iterations for view in engine.stages] == [6 - p for p in range(pprank.num_stages)]


def test_request_moves_one_iteration_at_a_time(engine: Engine) -> None:
    rid = engine.submit(30)
    assert (engine.idle, engine.results[rid].token_ids) == (False, [])
    engine.step()
    assert rid in engine.stages[0].rids
    assert rid not in engine.stages[-1].rids
    engine.run_until(lambda: engine.results[rid].token_ids)
    assert len(engine.results[rid].token_ids) == 1
    engine.drain()
    assert len(engine.results[rid].token_ids) == 8
    assert engine.idle


def test_chunks_are_seen(engine: Engine) -> None:
    rid = engine.submit(600)
    engine.run_until(lambda: engine.is_chunking(rid))
    assert engine.chunks_done(rid) == 1
    engine.drain()
    assert (engine.is_chunking(rid), engine.chunks_done(rid)) == (False, 3)
    assert engine.results[rid].extends == [(0, 256), (256, 512), (512, 600)]


def test_condition_that_holds_already_costs_no_step(engine: Engine) -> None:
    engine.step(3)
    engine.run_until(lambda: True)
    assert engine.stages[0].iterations == 3


def test_condition_on_all_stages(engine: Engine) -> None:
    rid = engine.submit(30, 100)
    engine.run_until(lambda: engine.forwards, where="all")
    assert all(rid in view.rids for view in engine.stages)


def test_condition_that_never_comes_true(engine: Engine) -> None:
    engine.submit(30, 100)
    with pytest.raises(AssertionError) as error:
        engine.run_until(lambda: False, max_iterations=4)
    message = str(error.value)
    assert "did not come true in 4 iterations" in message
    assert "req-000: prompt of 30 tokens" in message
    assert "stage 0, 4 iterations: " in message


def test_loops_are_left_and_entered_again(engine: Engine, scheduler: Any) -> None:
    first = engine.generate([40])
    loops = [thread for thread in threading.enumerate() if thread.name == "sglang-event-loop"]
    engine.leave()
    assert not any(thread.is_alive() for thread in loops)
    assert not scheduler.send_req_work
    scheduler.flush_cache()
    again = engine.generate([first[0].prompt])
    assert again[0].token_ids == first[0].token_ids


def test_busy_loops_are_not_left(engine: Engine) -> None:
    engine.submit(40)
    engine.step()
    with pytest.raises(UsageError, match="not idle") as error:
        engine.leave()
    assert "req-000" in str(error.value)


def test_what_is_left_is_aborted(engine: Engine, scheduler: Any) -> None:
    rid = engine.submit(40, 500)
    engine.step(3)
    assert engine.close() == [rid]
    assert (engine.results[rid].finish_reason or {})["type"] == "abort"
    assert_kv_balanced(scheduler)


def test_scheduler_is_as_before(engine: Engine, scheduler: Any) -> None:
    receiver = scheduler.request_receiver
    engine.generate([3])
    engine.close()
    assert scheduler.request_receiver is not receiver
    assert scheduler.request_receiver.scripted_scheduler_hook is None
    assert scheduler.scripted_scheduler_hook is None


def test_abort_of_all(engine: Engine) -> None:
    for _ in range(3):
        engine.submit(20, 300)
    engine.step(4)
    engine.abort()
    engine.drain()
    assert {(r.finish_reason or {})["type"] for r in engine.results.values()} == {"abort"}


def test_ranks_that_ask_for_different_things(engine: Engine, pprank: Pprank) -> None:
    engine.submit(3 + pprank.rank)
    with pytest.raises(UsageError, match="asked the engine for different things") as error:
        engine.step()
    assert "rank 1: submit('req-000', 4 tokens" in str(error.value)


def test_abort_that_is_lost(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_pprank.sglang.driver.messages import abort_request

    rid = engine.submit(20, 60)
    engine.run_until(lambda: len(engine.results[rid].token_ids) >= 2)
    with monkeypatch.context() as patch:
        # SGLang gets another request than it should
        patch.setattr(
            "pytest_pprank.sglang.driver.engine.abort_request", lambda _: abort_request("none")
        )
        engine.abort(rid)
    with pytest.raises(AssertionError, match=f"the abort of {rid} was lost, or is late: ") as error:
        engine.drain()
    assert "stage 0 has begun since: decode in iteration" in str(error.value)
    assert "where it was then: stage 0: microbatch slot 0" in str(error.value)
    engine.drain()
    assert len(engine.results[rid].token_ids) == 60


@pytest.mark.pprank(pp=1)
def test_failure_inside_the_loop(engine: Engine, scheduler: Any) -> None:
    from pytest_pprank.sglang.stage.idle import reset_scheduler

    engine.on_forward(lambda _: int("a wrong step"))
    words = r"event loop failed in \S+ \(\w+\.py:\d+\) < .*: ValueError: invalid"
    with pytest.raises(AssertionError, match=words) as error:
        engine.generate([9])
    assert "last forward: extend of req-000 (tokens 0-9)" in str(error.value)
    assert isinstance(error.value.__cause__, ValueError)
    reset_scheduler(scheduler)  # else the plugin would warn of what that forward still owns


@pytest.mark.pprank(pp=1)
def test_one_stage(engine: Engine) -> None:
    results = engine.generate([300, 5])
    assert_tokens_equal_reference(results)
    engine.leave()
    assert_tokens_equal_reference(engine.generate([7]))


def test_callback_sees_each_batch_of_its_stage(engine: Engine) -> None:
    seen: list[list[str]] = []
    engine.on_forward(lambda batch: seen.append([req.rid for req in batch.reqs]))
    engine.generate([5, 6], max_new_tokens=2)
    assert seen == [list(forward.rids) for forward in engine.forwards]
    assert [forward.mode for forward in engine.forwards] == ["extend", "decode"]


def test_stages_that_run_other_batches(engine: Engine, pprank: Pprank) -> None:
    def swap(_: Any) -> None:
        if pprank.is_last_stage and engine.iterations == 2:
            engine.forwards[-1] = replace(engine.forwards[-1], rids=("req-001", "req-000"))

    engine.on_forward(swap)
    with pytest.raises(AssertionError, match="did not run the same batches") as error:
        engine.generate([5, 6])
    assert "stage 0: iteration 2, decode of req-000, req-001" in str(error.value)
    assert "stage 1: iteration 2, decode of req-001, req-000" in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e.generate([]), "must be a list with at least one prompt"),
        (lambda e: e.generate("abc"), "must be a list with at least one prompt"),
        (lambda e: e.generate([[]]), "needs at least one token id"),
        (lambda e: e.generate([[1, 10240]]), "each from 0 to 10239"),
        (lambda e: e.submit(3, temprature=1), r"no 'temprature' \(did you mean 'temperature'\?\)"),
        (lambda e: e.abort("nobody"), "'nobody' was not submitted"),
        (lambda e: e.submit(3, fields={"streams": 1}), "no field 'streams'"),
        (lambda e: e.step(0), "at least one iteration"),
        (lambda e: e.run_until(bool, where="some"), "allowed: 'any', 'all'"),
    ],
)
def test_wrong_calls(engine: Engine, call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(engine)


def test_id_is_used_once(engine: Engine) -> None:
    engine.submit(3, rid="mine")
    with pytest.raises(UsageError, match="'mine' has been used already"):
        engine.submit(3, rid="mine")


def test_balance_names_who_holds(engine: Engine, scheduler: Any) -> None:
    rid = engine.submit(30, 50)
    engine.run_until(lambda: len(engine.results[rid].token_ids) >= 2)
    with pytest.raises(AssertionError, match="held by req-000: request slot") as error:
        assert_kv_balanced(scheduler)
    assert "last forward: decode" in str(error.value)
    assert "microbatch slot" in str(error.value)
    engine.drain()
    assert_kv_balanced(scheduler)


def test_wrong_token_is_told(engine: Engine) -> None:
    (result,) = engine.generate([300])
    right = result.token_ids[5]
    result.token_ids[5] = 17
    with pytest.raises(AssertionError) as error:
        assert_tokens_equal_reference(result)
    message = str(error.value)
    assert f"output token 5 of 8 (position 305) is 17, the reference has {right}" in message
    assert f"for {right}, " in message
    assert "run as 0-256, 256-300" in message


def test_missing_token_is_told(engine: Engine) -> None:
    (result,) = engine.generate([9])
    result.token_ids.pop()
    with pytest.raises(AssertionError, match="7 tokens came out, 8 were asked for"):
        assert_tokens_equal_reference(result)


@pytest.mark.pprank(sanitize="-logs")
def test_refused_request_is_told(engine: Engine) -> None:
    results = engine.generate([4095, 5])
    assert results[1].finish_reason == {"type": "length", "length": 8}
    with pytest.raises(AssertionError, match=r"req-000: SGLang refused .*Input length"):
        assert_tokens_equal_reference(results)


def test_wrong_logprob_is_told(engine: Engine) -> None:
    (result,) = engine.generate([9], logprobs=True)
    assert_tokens_equal_reference(result)
    result.logprobs[2] -= 0.5
    with pytest.raises(AssertionError, match=r"the logprob of output token 2 \(\d+\) is -\d"):
        assert_tokens_equal_reference(result)


def test_tie_is_called_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_pprank.sglang.model import loaded

    (result,) = engine.generate([9])
    result.token_ids[0] = 17
    monkeypatch.setitem(loaded.TIE, "torch.float32", 100.0)
    with pytest.raises(AssertionError, match="this is a tie"):
        assert_tokens_equal_reference(result)


def test_where_the_kv_begins_to_differ(engine: Engine, pprank: Pprank) -> None:
    """The KV of a prompt's last layer is erased when its second token is computed."""

    def wipe(batch: Any) -> None:
        if pprank.is_last_stage and batch.forward_mode.is_decode() and not wiped:
            wiped.append(batch.token_to_kv_pool_allocator.get_kvcache().k_buffer[-1].zero_())

    wiped: list[Any] = []
    engine.on_forward(wipe)
    results = engine.generate([30])
    with pytest.raises(AssertionError) as error:
        assert_tokens_equal_reference(results)
    for line in (
        "KV of req-000 on rank 0 (stage 0 of 2) (layers 0 to 1): as in the reference",
        "KV of req-000 on rank 1 (stage 1 of 2) (layers 2 to 3): layer 3: keys of tokens 0-30",
    ):
        assert line in str(error.value)


def test_sampled_tokens_have_no_reference(engine: Engine) -> None:
    results = engine.generate([9], temperature=0.7)
    with pytest.raises(UsageError, match=r"temperature=0\.7"):
        assert_tokens_equal_reference(results)
