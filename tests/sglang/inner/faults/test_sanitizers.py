"""Faults planted into real Schedulers, each for one sanitizer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.pprank(sanitize=list(names))


log = logging.getLogger("sglang.srt.somewhere")


@only("kv")
def test_double_free(scheduler: Any) -> None:
    allocator = scheduler.token_to_kv_pool_allocator
    taken = allocator.alloc(3)
    allocator.free(taken)
    allocator.free(taken[1:])
    allocator.clear()


@only("kv")
def test_leak(engine: Engine) -> None:
    engine.generate([5])
    engine.leave()
    engine.scheduler.token_to_kv_pool_allocator.alloc(3)


@only("kv")
def test_request_that_is_kept(engine: Engine, scheduler: Any) -> None:
    from pytest_pprank.sglang.stage.stage import this_stage

    engine.generate([5])
    engine.leave()
    scheduler.req_to_token_pool.alloc(this_stage().seen_requests()[:1])


@only("kv")
def test_use_after_free(engine: Engine) -> None:
    engine.on_forward(lambda batch: batch.token_to_kv_pool_allocator.free(batch.out_cache_loc))
    engine.generate([5], max_new_tokens=1)


@only("forward")
def test_token_of_another_request(engine: Engine) -> None:
    def change(batch: Any) -> None:
        if batch.forward_mode.is_decode():
            batch.reqs[0].output_ids[-1] += 1

    engine.on_forward(change)
    engine.generate([5], max_new_tokens=2)


@only("forward")
def test_stale_mirror(engine: Engine) -> None:
    def change(batch: Any) -> None:
        if batch.forward_mode.is_decode():
            batch.seq_lens_cpu = batch.seq_lens_cpu - 1

    engine.on_forward(change)
    engine.generate([5], max_new_tokens=2)


@only("logs")
@pytest.mark.sglang
def test_swallowed_failure() -> None:
    log.warning("Failed to profile prefill latency. Dynamic chunking will be disabled.")


@only("logs")
@pytest.mark.sglang
def test_caught_traceback() -> None:
    try:
        int("nothing")
    except ValueError:
        log.warning("never mind", exc_info=True)


@only("logs")
@pytest.mark.sglang
def test_harmless_warning() -> None:
    log.warning("Cuda graph is disabled")


@only("liveness")
def test_starving_request(engine: Engine, scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = scheduler.get_new_batch_prefill

    def hide(running_batch: Any) -> Any:
        waiting = scheduler.waiting_queue[:]
        if engine.iterations < 140:
            scheduler.waiting_queue.clear()
        try:
            return original(running_batch)
        finally:
            if engine.iterations < 140:
                scheduler.waiting_queue.extend(waiting)

    monkeypatch.setattr(scheduler, "get_new_batch_prefill", hide, raising=False)
    engine.submit(9)
    engine.step(150)
    engine.drain()


@only("p2p")
def test_handles_nobody_waits_for(
    engine: Engine, scheduler: Any, monkeypatch: pytest.MonkeyPatch, pprank: Pprank
) -> None:
    if pprank.rank == 0:
        monkeypatch.setattr(
            scheduler, "_pp_commit_comm_work", lambda work, **_: work.clear(), raising=False
        )
    engine.generate([5, 6])


@only("consensus")
def test_stage_that_runs_a_batch_twice(
    engine: Engine, scheduler: Any, monkeypatch: pytest.MonkeyPatch, pprank: Pprank
) -> None:
    if pprank.is_last_stage:
        run = scheduler.tp_worker.forward_batch_generation
        monkeypatch.setattr(
            scheduler.tp_worker,
            "forward_batch_generation",
            lambda *args, **options: (run(*args, **options), run(*args, **options))[1],
        )
    assert_tokens_equal_reference(engine.generate([5], max_new_tokens=1))


def test_assertion_on_the_last_stage(engine: Engine, pprank: Pprank) -> None:
    engine.generate([20, 30], 4)
    assert not pprank.is_last_stage, "on purpose"
