"""Batches that are merged and filtered: each request keeps its values, whatever the others have.

A field that one of two merged batches has and the other has not is the usual mistake: a list of
logprobs that is too short, a penalty of another request, a mirror that is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_materialized_on_device
from pytest_pprank.suite.releases import aborts_end_all_slots

if TYPE_CHECKING:
    from pytest_pprank import Engine
    from pytest_pprank.sglang.compat.objects import (
        ForwardBatch,
        Options,
        Req,
        ScheduleBatch,
        Scheduler,
    )

    MakeReq = Callable[..., Req]
    MakeScheduleBatch = Callable[..., ScheduleBatch]
    MakeForwardBatch = Callable[[ScheduleBatch], ForwardBatch]

PLAIN: Sequence[Options] = ({}, {}, {})
RICH: Sequence[Options] = (
    {"frequency_penalty": 0.5, "logit_bias": {"77": 3.0}, "top_logprobs": 2},
    {"frequency_penalty": 0.25, "presence_penalty": 0.7, "top_logprobs": 0, "min_p": 0.1},
    {"repetition_penalty": 1.3, "logit_bias": {"9": 1.0}, "temperature": 0.7, "top_p": 0.8},
)
PAIRS = ((RICH, PLAIN), (PLAIN, RICH), (RICH, RICH))
STATES = ("staged", "extended", "decode", "decoded", "filtered", "retracted")
"""What a batch has gone through: see `Batches.make`."""


class Batches:
    """Makes batches of two or three requests, each of them after another history."""

    def __init__(
        self,
        scheduler: Scheduler,
        make_req: MakeReq,
        make_schedule_batch: MakeScheduleBatch,
        make_forward_batch: MakeForwardBatch,
    ) -> None:
        self.scheduler = scheduler
        self._make_req = make_req
        self._batch = make_schedule_batch
        self._forward_batch = make_forward_batch

    def make(self, state: str, kinds: Sequence[Options], length: int) -> ScheduleBatch:
        """Return a batch in that state.

        Its prompt is staged, or has been computed (extended); it is prepared for decoding (decode),
        or has decoded a token (decoded), after which a request has left it (filtered), or after
        which all were retracted and their prompts are staged again (retracted).
        """
        from pytest_pprank.sglang.batches.build import release_reqs

        reqs = [self._make_req(prompt_len=length + i, **kind) for i, kind in enumerate(kinds)]
        if state in ("staged", "extended"):
            batch = self._batch(reqs)
            if state == "extended":
                self.run(batch)
            return batch
        batch = self._batch(reqs, mode="decode")
        if state != "decode":
            self.run(batch)
        if state == "filtered":
            release_reqs(self.scheduler, [batch.reqs[1]])
            batch.filter_batch(keep_indices=[0, 2])
        if state == "retracted":
            release_reqs(self.scheduler, reqs)
            for req in reqs:
                req.reset_for_retract()
            return self._batch(reqs)
        return batch

    def run(self, batch: ScheduleBatch) -> None:
        """Run a forward of this stage, and let each request have one more token."""
        from pytest_pprank.sglang.batches.build import append_tokens, run_forward

        run_forward(self.scheduler, self._forward_batch(batch))
        append_tokens(self.scheduler, batch)


@pytest.fixture
def batches(
    scheduler: Scheduler,
    make_req: MakeReq,
    make_schedule_batch: MakeScheduleBatch,
    make_forward_batch: MakeForwardBatch,
) -> Batches:
    return Batches(scheduler, make_req, make_schedule_batch, make_forward_batch)


@pytest.mark.parametrize("left", STATES)
def test_merge(batches: Batches, left: str) -> None:
    """In all pairs of states; then some requests leave again."""
    from pytest_pprank.sglang.batches.build import release_reqs
    from pytest_pprank.sglang.batches.rows import checked_rows

    with checked_rows() as problems:
        for index, right in enumerate(STATES, STATES.index(left)):
            kinds = PAIRS[index % len(PAIRS)]
            one, other = batches.make(left, kinds[0], 11), batches.make(right, kinds[1], 5)
            one.merge_batch(other)
            other.reqs = []  # they belong to the first batch now
            keep = [1, len(one.reqs) - 1]
            release_reqs(batches.scheduler, [one.reqs[0], *one.reqs[2:-1]])
            one.filter_batch(keep_indices=keep)
            assert not problems, f"{left} and {right}: {problems[0]}"
            release_reqs(batches.scheduler, one.reqs)
    assert_kv_balanced(batches.scheduler)


@pytest.mark.parametrize("kinds", PAIRS, ids=("rich-plain", "plain-rich", "rich-rich"))
def test_merged_batch_can_be_decoded(
    batches: Batches, make_forward_batch: MakeForwardBatch, kinds: Sequence[Sequence[Options]]
) -> None:
    """As SGLang merges them: what has been decoded, and what has just been computed."""
    one, other = batches.make("filtered", kinds[0], 11), batches.make("extended", kinds[1], 5)
    one.merge_batch(other)
    other.reqs = []
    one.prepare_for_decode()
    assert_materialized_on_device(make_forward_batch(one))
    assert_materialized_on_device(one)


@aborts_end_all_slots
def test_batches_of_the_event_loop(engine: Engine) -> None:
    """Each batch that SGLang itself merges or filters while requests come, end and are aborted."""
    from pytest_pprank.sglang.batches.rows import checked_rows

    with checked_rows() as problems:
        for index in range(9):
            kind = (*RICH[:2], {})[index % 3]
            engine.submit(12 + 5 * index, 3 + 4 * (index % 3), **kind)
            engine.step(1)
        aborted = engine.submit(20, 60, **RICH[0])
        engine.run_until(lambda: engine.results[aborted].token_ids)
        engine.abort(aborted)
        engine.drain()
    assert not problems, problems[0]
    assert_kv_balanced(engine.scheduler)
