"""Faults planted into real Schedulers, in a pytest of their own: each is seen by its sanitizer."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

TESTS = """
import logging
import pytest

only = lambda *names: pytest.mark.pprank(sanitize=list(names))
log = logging.getLogger("sglang.srt.somewhere")


@only("kv")
def test_double_free(scheduler):
    allocator = scheduler.token_to_kv_pool_allocator
    taken = allocator.alloc(3)
    allocator.free(taken)
    allocator.free(taken[1:])
    allocator.clear()


@only("kv")
def test_leak(engine):
    engine.generate([5])
    engine.leave()
    engine.scheduler.token_to_kv_pool_allocator.alloc(3)


@only("kv")
def test_request_that_is_kept(engine, scheduler, monkeypatch):
    from sglang.srt.managers import scheduler as module
    engine.generate([5])
    engine.leave()
    engine.scheduler.req_to_token_pool.alloc([engine_req(engine)])


def engine_req(engine):
    from pytest_pprank.sglang.holders import seen_requests
    return seen_requests(engine.scheduler)[0]


@only("kv")
def test_use_after_free(engine):
    engine.on_forward(lambda batch: batch.token_to_kv_pool_allocator.free(batch.out_cache_loc))
    engine.generate([5], max_new_tokens=1)


@only("forward")
def test_token_of_another_request(engine, monkeypatch):
    def change(batch):
        if batch.forward_mode.is_decode():
            batch.reqs[0].output_ids[-1] += 1
    engine.on_forward(change)
    engine.generate([5], max_new_tokens=2)


@only("forward")
def test_stale_mirror(engine):
    def change(batch):
        if batch.forward_mode.is_decode():
            batch.seq_lens_cpu = batch.seq_lens_cpu - 1
    engine.on_forward(change)
    engine.generate([5], max_new_tokens=2)


@only("logs")
def test_swallowed_failure():
    log.warning("Failed to profile prefill latency. Dynamic chunking will be disabled.")
test_swallowed_failure = pytest.mark.sglang()(test_swallowed_failure)


@only("logs")
def test_caught_traceback(scheduler):
    try:
        int("nothing")
    except ValueError:
        log.warning("never mind", exc_info=True)


@only("logs")
def test_harmless_warning(scheduler):
    log.warning("Cuda graph is disabled")


@only("liveness")
def test_starving_request(engine, scheduler, monkeypatch):
    original = scheduler.get_new_batch_prefill

    def hide(running_batch):
        waiting = scheduler.waiting_queue[:]
        scheduler.waiting_queue.clear()
        try:
            return original(running_batch)
        finally:
            scheduler.waiting_queue.extend(waiting)

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "get_new_batch_prefill", hide, raising=False)
        engine.submit(9)
        engine.step(150)
    engine.drain()


@only("p2p")
def test_handles_nobody_waits_for(engine, scheduler, monkeypatch, pprank):
    if pprank.rank == 0:
        monkeypatch.setattr(
            scheduler, "_pp_commit_comm_work", lambda work, **_: work.clear(), raising=False
        )
    engine.generate([5, 6])
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "--pp-size", "2", "-p", "no:cacheprovider", "-v"]
    command += ["--pprank-timeout", "60"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("test_double_free", ["kv: double free: KV tokens", "on ranks 0,1", "at test_it.py:"]),
        (
            "test_leak",
            [
                "kv: not balanced, with all requests done:",
                "KV pool: 3 of 4096 tokens were not given back",
                "3 KV tokens of nobody known: taken at test_it.py:",
            ],
        ),
        (
            "test_request_that_is_kept",
            ["request slots: 1 of 8", "held by req-000", "taken at test_it.py:"],
        ),
        (
            "test_use_after_free",
            ["kv: use after free: the forward's output uses KV tokens", "last of req-000"],
        ),
        (
            "test_token_of_another_request",
            ["forward: a decode enters the model: input_ids of req-000 is"],
        ),
        ("test_stale_mirror", ["forward: a decode enters the model: ForwardBatch.seq_lens_cpu"]),
        (
            "test_swallowed_failure",
            ["logs: SGLang logged at level WARNING: Failed to profile", "cure: SGLang has caught"],
        ),
        ("test_caught_traceback", ["while handling ValueError: invalid literal"]),
        ("test_starving_request", ["liveness: req-000 has not been in a forward for 128 iter"]),
        (
            "test_handles_nobody_waits_for",
            ["p2p: isend of", "was never waited for", "scheduler_pp_mixin.py:"],
        ),
    ],
)
def test_fault_is_found(output: str, test: str, words: list[str]) -> None:
    failures = re.split(r"\n_{3,} (test_\w+)\[pp2\] _{3,}\n", output)
    told = dict(zip(failures[1::2], failures[2::2], strict=True))
    assert test in told, output
    found = told[test].partition("- sanitizers -")[2]
    for expected in words:
        assert expected in found, told[test]


def test_harmless_warning_passes(output: str) -> None:
    assert "test_harmless_warning[pp2] PASSED" in output
