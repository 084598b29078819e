"""The assertions: what they say when they fail, each failure provoked on the real objects."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from pytest_pprank import (
    UsageError,
    assert_kv_balanced,
    assert_materialized_on_device,
    assert_profiler_ready,
    assert_ranks_agree,
    assert_staging_consumed,
)

Make = Callable[..., Any]


def failure(check: Callable[..., None], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as error:
        check(*args, **kwargs)
    return str(error.value)


def test_staged_ids_are_named_with_rank_and_cause(schedule_batch: Any, pprank: Any) -> None:
    message = failure(assert_materialized_on_device, schedule_batch)
    assert f"on rank {pprank.rank} (pp stage {pprank.stage} of {pprank.num_stages})" in message
    assert "ScheduleBatch.input_ids: found None" in message
    assert "prefill_input_ids_cpu still holds a host tensor int64[62]" in message
    assert "SGLang PR 26883" in message


def test_staging_that_stays_is_named(schedule_batch: Any) -> None:
    message = failure(assert_staging_consumed, schedule_batch)
    assert "ScheduleBatch.prefill_input_ids_cpu: found a staged copy still present" in message
    assert "resolve_forward_inputs consumes it into input_ids" in message


def test_missing_field_of_a_forward_batch(schedule_batch: Any, make_forward_batch: Make) -> None:
    forward_batch = make_forward_batch(schedule_batch)
    assert_materialized_on_device(forward_batch)
    forward_batch.positions = None
    message = failure(assert_materialized_on_device, forward_batch)
    assert "ForwardBatch.positions: found None; expected a tensor on" in message
    assert_materialized_on_device(forward_batch, fields=["input_ids", "seq_lens"])


def test_wrong_device(schedule_batch: Any, make_forward_batch: Make) -> None:
    forward_batch = make_forward_batch(schedule_batch)
    forward_batch.seq_lens = forward_batch.seq_lens.to("meta")
    message = failure(assert_materialized_on_device, forward_batch, fields=["seq_lens"])
    assert re.search(r"ForwardBatch.seq_lens: found a tensor on meta int64\[3\]", message)


def test_contents_must_be_what_was_staged(schedule_batch: Any, make_forward_batch: Make) -> None:
    forward_batch = make_forward_batch(schedule_batch)
    schedule_batch.input_ids[0] += 1
    message = failure(assert_materialized_on_device, forward_batch)
    assert "what was staged in prefill_input_ids_cpu" in message


def test_stale_host_mirror(schedule_batch: Any, make_forward_batch: Make) -> None:
    make_forward_batch(schedule_batch)
    schedule_batch.seq_lens_cpu = schedule_batch.seq_lens_cpu[:-1]
    message = failure(assert_materialized_on_device, schedule_batch)
    assert "ScheduleBatch.seq_lens_cpu: found [5, 17] (2 values)" in message
    assert "[5, 17, 40] (3 values)" in message


def test_unknown_tensor_field_is_never_ignored(
    schedule_batch: Any, make_forward_batch: Make
) -> None:
    forward_batch = make_forward_batch(schedule_batch)
    forward_batch.brand_new = forward_batch.seq_lens
    message = failure(assert_materialized_on_device, forward_batch)
    assert "ForwardBatch.brand_new: found" in message
    assert "does not know this field" in message


def test_plain_tensor(pprank: Any) -> None:
    import torch

    assert_materialized_on_device(torch.zeros(2, device=pprank.device))
    message = failure(assert_materialized_on_device, torch.zeros(2), device="meta")
    assert "expected a tensor on meta" in message


@pytest.mark.parametrize("check", [assert_materialized_on_device, assert_staging_consumed])
def test_object_it_does_not_know(check: Callable[..., None], scheduler: Any) -> None:
    with pytest.raises(UsageError, match=r"Scheduler is not known; it takes .*ScheduleBatch"):
        check(scheduler)


def test_field_that_the_table_does_not_have(schedule_batch: Any) -> None:
    with pytest.raises(UsageError, match=r"no tensor field 'input_id' \(did you mean 'input_ids'"):
        assert_materialized_on_device(schedule_batch, fields=["input_id"])


def test_ranks_that_differ_are_named_with_their_values(pprank: Any) -> None:
    import torch

    assert_ranks_agree({"a": [torch.arange(3)], "b": None})
    message = failure(assert_ranks_agree, pprank.rank == 0, what="being first")
    others = ",".join(str(rank) for rank in range(1, pprank.world_size))
    assert message.startswith("ranks disagree on being first:\n  rank 0: True\n")
    assert f"{others}: False" in message
    assert "rank 1" in failure(assert_ranks_agree, torch.tensor([pprank.rank]))


def test_kv_that_was_not_given_back(scheduler: Any, make_schedule_batch: Make, pprank: Any) -> None:
    assert_kv_balanced(scheduler)
    make_schedule_batch([30])
    message = failure(assert_kv_balanced, scheduler)
    assert f"KV is not balanced on rank {pprank.rank}" in message
    assert "KV pool: 30 of 4096 tokens were not given back" in message
    assert "request slots: 1 of 8 were not given back" in message


def test_profiler_needs_dynamic_chunking(scheduler: Any) -> None:
    with pytest.raises(UsageError, match=r"@pytest.mark.sglang\(enable_dynamic_chunking=True\)"):
        assert_profiler_ready(scheduler)
