"""Batches of every kind have their inputs on the device when their forward starts.

SGLang PR 26883 is an example of this class of bugs: `prepare_for_extend` stages the token ids on
the host, and its caller must copy them to the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import (
    assert_kv_balanced,
    assert_materialized_on_device,
    assert_staging_consumed,
)

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import ForwardBatch, ScheduleBatch, Scheduler

    MakeScheduleBatch = Callable[..., ScheduleBatch]
    MakeForwardBatch = Callable[[ScheduleBatch], ForwardBatch]

PROMPTS = [[11, 12, 13], 40, 7]
# Fields that a batch keeps from one step to the next; the others are rebuilt for each forward.
STATE = ["seq_lens", "seq_lens_cpu", "req_pool_indices", "req_pool_indices_cpu", "orig_seq_lens"]


@pytest.mark.parametrize("mode", ["extend", "decode"])
def test_batch_materializes(
    make_schedule_batch: MakeScheduleBatch,
    make_forward_batch: MakeForwardBatch,
    mode: str,
) -> None:
    batch = make_schedule_batch(PROMPTS, mode=mode)
    forward_batch = make_forward_batch(batch)
    assert_staging_consumed(batch)
    assert_materialized_on_device(batch)
    assert_materialized_on_device(forward_batch)


def test_every_chunk_materializes(
    scheduler: Scheduler,
    make_schedule_batch: MakeScheduleBatch,
    make_forward_batch: MakeForwardBatch,
) -> None:
    from pytest_pprank.sglang.batches.build import make_next_chunk, release, run_forward

    batch = make_schedule_batch([300], chunk=128)
    lengths = []
    while True:
        forward_batch = make_forward_batch(batch)
        assert_materialized_on_device(forward_batch)
        lengths.append(len(forward_batch.input_ids))
        run_forward(scheduler, forward_batch)
        if batch.chunked_req is None:
            break
        batch = make_next_chunk(scheduler, batch, chunk=128)
    assert lengths == [128, 128, 44]
    release(scheduler, batch)
    assert_kv_balanced(scheduler)


@pytest.mark.parametrize("mode", ["extend", "decode"])
def test_forward_gives_kv_back(
    scheduler: Scheduler,
    make_schedule_batch: MakeScheduleBatch,
    make_forward_batch: MakeForwardBatch,
    mode: str,
) -> None:
    from pytest_pprank.sglang.batches.build import release, run_forward

    batch = make_schedule_batch(PROMPTS, mode=mode)
    run_forward(scheduler, make_forward_batch(batch))
    release(scheduler, batch)
    assert_kv_balanced(scheduler)


def test_batches_do_not_share_their_staging(
    make_schedule_batch: MakeScheduleBatch,
    make_forward_batch: MakeForwardBatch,
) -> None:
    first, second = make_schedule_batch([40]), make_schedule_batch([40])
    for batch in (first, second):  # a pipeline stages several microbatches before they run
        assert_materialized_on_device(make_forward_batch(batch))


def test_filtered_batch_keeps_its_mirrors(
    scheduler: Scheduler,
    make_schedule_batch: MakeScheduleBatch,
    make_forward_batch: MakeForwardBatch,
) -> None:
    from pytest_pprank.sglang.batches.build import release_reqs

    batch = make_schedule_batch(PROMPTS, mode="decode")
    make_forward_batch(batch)
    release_reqs(scheduler, [batch.reqs[1]])
    batch.filter_batch(keep_indices=[0, 2])
    assert_materialized_on_device(batch, fields=STATE)


def test_merged_batch_keeps_its_mirrors(
    make_schedule_batch: MakeScheduleBatch,
    make_forward_batch: MakeForwardBatch,
) -> None:
    batches = [make_schedule_batch(PROMPTS, mode="decode"), make_schedule_batch([9], mode="decode")]
    for batch in batches:
        make_forward_batch(batch)
    batches[0].merge_batch(batches[1])
    assert_materialized_on_device(batches[0], fields=STATE)
    batches[1].reqs = []  # they belong to the first batch now
