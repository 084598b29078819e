"""Control requests, idle and under load: all stages handle them, and one answer comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.suite.ends import end_of

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

CHUNK = 256
"""The default of ``chunked_prefill_size``: see `sglang_args`."""


def check(engine: Engine) -> None:
    """Check that no request was lost, all tokens are right, and all memory was freed."""
    engine.drain()
    assert all(end_of(result) == "length" for result in engine.results.values())
    assert_tokens_equal_reference(engine.results.values())
    assert_kv_balanced(engine.scheduler)


def idle(engine: Engine) -> str:
    """Run until all requests are finished, and then a few idle iterations."""
    (result,) = engine.generate([30], max_new_tokens=2)
    engine.step(3)
    return str(result.rid)


def amid_a_prompt(engine: Engine) -> str:
    """Run until one request is being decoded and another one is in the middle of its prompt."""
    engine.submit(20, 12)
    rid: str = engine.submit(3 * CHUNK, 3)
    engine.run_until(lambda: engine.chunks_done(rid) >= 2)
    assert engine.is_chunking(rid)
    return rid


def amid_decoding(engine: Engine) -> str:
    """Run until some requests are being decoded, in several microbatch slots."""
    rids = [engine.submit(20 + 7 * index, 14) for index in range(3)]
    engine.run_until(lambda: all(len(engine.results[rid].token_ids) >= 2 for rid in rids))
    return str(rids[0])


def cached(engine: Engine) -> int:
    """Return how many tokens in the tree cache of this stage can be evicted."""
    return int(engine.scheduler.tree_cache.evictable_size())


def test_cache_is_flushed_on_every_stage(engine: Engine) -> None:
    prompt = [*range(1000, 1300)]
    engine.generate([prompt, 40], max_new_tokens=3)
    assert cached(engine)
    flush = engine.control("flush_cache", wait=True)
    assert flush.answer.success
    assert not cached(engine), "this stage has kept its cache"
    (again,) = engine.generate([prompt], max_new_tokens=3)
    assert again.cached_tokens == 0
    check(engine)


def test_flush_is_refused_while_requests_run(engine: Engine) -> None:
    """All stages refuse it, also those that are iterations behind, and keep the KV in use."""
    idle(engine)
    for go_to in (amid_a_prompt, amid_decoding):
        go_to(engine)
        assert not engine.control("flush_cache", wait=True).answer.success
        assert cached(engine), "this stage has flushed its cache"
        engine.drain()
    check(engine)


def test_flush_that_may_wait_is_done_when_all_is_idle(engine: Engine) -> None:
    rid = amid_a_prompt(engine)
    flush = engine.control("flush_cache", timeout_s=3600.0)
    engine.step(4)
    assert flush.answer is None
    assert engine.control("flush_cache", wait=True).answer.message  # the other one is pending
    assert flush.wait().success
    assert engine.results[rid].finished
    assert not cached(engine), "this stage has kept its cache"
    check(engine)


def test_setting_takes_effect_on_every_stage(engine: Engine, pprank: Pprank) -> None:
    """Afterwards a microbatch slot runs one request at a time."""
    amid_decoding(engine)
    before = engine.scheduler.max_running_requests // pprank.num_stages
    one = engine.control("set_internal_state", server_args={"pp_max_micro_batch_size": 1})
    assert one.wait().updated
    engine.drain()
    begun = len(engine.forwards)
    for index in range(2 * pprank.num_stages):
        engine.submit(30 + index, 4)
    engine.drain()
    together = max(len(forward.rids) for forward in engine.forwards[begun:])
    most = engine.control("set_internal_state", server_args={"pp_max_micro_batch_size": before})
    assert most.wait().updated
    assert together == 1, f"{together} requests ran together on this stage"
    check(engine)


@pytest.mark.pprank(known_bug="refused-setting-is-told-as-set")
def test_setting_that_is_refused(engine: Engine) -> None:
    amid_decoding(engine)
    none = engine.control("set_internal_state", server_args={"pp_max_micro_batch_size": 0})
    assert not none.wait().updated, "a value that was refused is told as set"
    check(engine)


@pytest.mark.pprank(known_bug="remote-call-waits-for-later-stages")
def test_remote_call_is_made_on_every_stage(engine: Engine) -> None:
    """The call ends in a barrier, which must not wait for stages that have not received the call
    yet (PR 25213).
    """
    calls = []
    engine.scheduler.note_call = lambda **parameters: calls.append(parameters)
    for go_to in (idle, amid_a_prompt, amid_decoding):
        go_to(engine)
        assert engine.control("rpc", method="note_call", wait=True).answer.success
        first = engine.control("rpc", method="note_call", parameters={"number": 1})
        second = engine.control("rpc", method="note_call", parameters={"number": 2})
        assert (first.wait().success, second.wait().success) == (True, True)
        assert calls == [{}, {"number": 1}, {"number": 2}], "what was called on this stage"
        calls.clear()
    check(engine)


@pytest.mark.pprank(sanitize="-logs", known_bug="remote-call-waits-for-later-stages")
def test_remote_call_that_fails(engine: Engine) -> None:
    amid_decoding(engine)
    failed = engine.control("rpc", method="no_such_method", wait=True)
    assert not failed.answer.success
    assert "no_such_method" in failed.answer.message
    check(engine)


def test_requests_of_several_kinds_at_once(engine: Engine) -> None:
    """Several are sent together: each is answered once, and handled on every stage."""
    for go_to in (idle, amid_a_prompt):
        go_to(engine)
        state = engine.control("get_internal_state")
        slow = engine.control("slow_down", forward_sleep_time=0.0001)
        flush = engine.control("flush_cache")
        again = engine.control("get_internal_state")
        for control in (again, flush, slow, state):
            control.wait()
        assert state.answer.internal_state["pp_size"] == again.answer.internal_state["pp_size"]
        assert flush.answer.success == (go_to is idle)
        assert engine.scheduler.forward_sleep_time == 0.0001
        engine.control("slow_down", forward_sleep_time=None, wait=True)
        assert engine.scheduler.forward_sleep_time is None
    check(engine)


@pytest.mark.pprank(known_bug="pause-does-not-pause-a-pipeline")
@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_nothing_is_generated_while_paused(engine: Engine, mode: str, pprank: Pprank) -> None:
    rid = engine.submit(30, 12 * pprank.num_stages)
    engine.run_until(lambda: len(engine.results[rid].token_ids) >= 2)
    engine.control("pause_generation", mode=mode, wait=True)
    engine.step(3 * pprank.num_stages)  # let outputs that are under way arrive
    before = len(engine.results[rid].token_ids)
    engine.step(4 * pprank.num_stages)
    made = len(engine.results[rid].token_ids) - before
    assert made == 0, f"{made} tokens came out while paused"
    engine.control("continue_generation", wait=True)
    check(engine)


def test_weights_are_read_again_on_every_stage(engine: Engine, pprank: Pprank) -> None:
    """Each stage has zeroed its own weights; only the first stage sends an answer."""
    import torch

    prompts = [[*range(2000, 2040)], [*range(3000, 3300)]]
    engine.generate(prompts, max_new_tokens=3)
    engine.step(8)
    for parameter in engine.scheduler.tp_worker.model_runner.model.parameters():
        parameter.data.zero_()
    if pprank.device != "cpu":  # the loop runs on another stream
        torch.get_device_module(pprank.device).synchronize()
    engine.control(
        "update_weights_from_disk",
        model_path=engine.scheduler.server_args.model_path,
        load_format="auto",
        wait=True,
    )
    engine.generate(prompts, max_new_tokens=3)
    check(engine)
