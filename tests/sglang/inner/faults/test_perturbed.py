"""Perturbation of real Schedulers: what it reveals, and what it does not change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

pytestmark = pytest.mark.pprank(pp=2)


@pytest.mark.pprank(perturb="1:kv_pressure")
def test_retraction(engine: Engine) -> None:
    results = engine.generate([20, 30, 40], max_new_tokens=30)
    assert any(result.retractions for result in results)
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


@pytest.mark.pprank(perturb="1:aborts,skew,messages,late_sends")
def test_aborts(engine: Engine, pprank: Pprank) -> None:
    for length in range(10, 100, 10):
        engine.submit(length, 20)
        engine.step(3)
    engine.drain()
    reasons = [(result.finish_reason or {})["type"] for result in engine.results.values()]
    assert_tokens_equal_reference(engine.results.values())
    assert {"abort", "length"} == set(reasons)
    assert_kv_balanced(engine.scheduler)
    assert pprank.world_size == 3, "to see what is told"


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("alone", marks=pytest.mark.pprank(perturb="none")),
        # a seed that delays the second stage by 85 ms at the start of its third iteration
        pytest.param("perturbed", marks=pytest.mark.pprank(perturb="6274:skew")),
    ],
)
def test_message_beside_the_pipeline(engine: Engine, pprank: Pprank, how: str) -> None:  # noqa: ARG001
    """A bug: the first stage writes to a buffer that is being sent, and waits for the send only
    afterwards. It goes unnoticed with gloo if the next stage has begun its iteration and already
    waits for the message.
    """
    import torch
    import torch.distributed as dist

    message = torch.full((4,), 7 * pprank.is_first_stage)
    works = []

    def expect() -> None:
        if engine.iterations == 2:  # the iteration of the forward
            works.append(dist.irecv(message, 0, tag=77))

    def send(_: Any) -> None:
        if not works:
            time.sleep(0.03)  # the time of a larger model's forward
            works.append(dist.isend(message, 1, tag=77))
            message.zero_()

    engine.step(2)
    if pprank.is_first_stage:
        engine.on_forward(send)
    else:
        engine.at_start_of_iteration(expect)
    pprank.barrier()
    engine.generate([17], max_new_tokens=1)
    works[0].wait()
    assert pprank.broadcast(message.tolist(), src=1) == [7] * 4, "what was written afterwards"
