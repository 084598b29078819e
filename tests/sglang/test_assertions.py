"""The assertions' messages: each failure is provoked on real objects."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import (
    UsageError,
    assert_kv_balanced,
    assert_materialized_on_device,
    assert_profiler_ready,
    assert_ranks_agree,
    assert_staging_consumed,
)

if TYPE_CHECKING:
    from pytest_pprank import Pprank

Make = Callable[..., Any]


def failure(check: Callable[..., None], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as error:
        check(*args, **kwargs)
    return str(error.value)


def test_staged_ids_are_named_with_rank_and_cause(schedule_batch: Any, pprank: Pprank) -> None:
    message = failure(assert_materialized_on_device, schedule_batch)
    assert f"on rank {pprank.rank} (stage {pprank.stage} of {pprank.num_stages})" in message
    assert "ScheduleBatch.input_ids: found None" in message
    assert "prefill_input_ids_cpu still holds a host tensor int64[62]" in message
    assert "SGLang PR 26883" in message


def test_ids_of_a_decode_batch_lie_in_the_future_map(make_schedule_batch: Make) -> None:
    batch = make_schedule_batch([3, 4], mode="decode")
    message = failure(assert_materialized_on_device, batch)
    assert "ScheduleBatch.input_ids: found None" in message
    assert "lie in SGLang's future_map" in message
    assert "26883" not in message


def test_staging_that_stays_is_named(schedule_batch: Any) -> None:
    message = failure(assert_staging_consumed, schedule_batch)
    assert "ScheduleBatch.prefill_input_ids_cpu: found a staged copy still present" in message
    assert "resolve_forward_inputs consumes it into input_ids" in message


@pytest.mark.parametrize("what", ["merge_batch", "filter_batch"])
def test_who_has_cleared_a_field(
    make_schedule_batch: Make, make_forward_batch: Make, what: str
) -> None:
    batch, other = make_schedule_batch([5, 9]), make_schedule_batch([7])
    calls = {
        "merge_batch": lambda: batch.merge_batch(other),
        "filter_batch": lambda: batch.filter_batch(keep_indices=[1]),
    }
    for each in (batch, other):
        assert_materialized_on_device(make_forward_batch(each))
    calls[what]()
    for each in (batch, make_forward_batch(batch)):
        message = failure(assert_materialized_on_device, each)
        assert f"{type(each).__name__}.out_cache_loc: found None" in message
        # classes in it from Python 3.11 on
        by = rf"set to None by (ScheduleBatch\.)?{what} \(schedule_batch\.py:\d+\), called at "
        assert re.search(by + r"test_assertions\.py:\d+\n", message), message
        assert "prepare_for_decode allocate its KV locations" in message
    batch.prepare_for_decode()
    assert_materialized_on_device(batch, fields=["out_cache_loc"])


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


def test_plain_tensor(pprank: Pprank) -> None:
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


def test_fields_as_one_str(schedule_batch: Any) -> None:
    with pytest.raises(UsageError, match=r"list or tuple: fields=\['input_ids'\]"):
        assert_materialized_on_device(schedule_batch, fields="input_ids")


def test_ranks_that_differ_are_named_with_their_values(pprank: Pprank) -> None:
    import torch

    assert_ranks_agree({"a": [torch.arange(3)], "b": None})
    message = failure(assert_ranks_agree, pprank.rank == 0, what="being first")
    others = ",".join(str(rank) for rank in range(1, pprank.world_size))
    assert message.startswith("ranks disagree on being first:\n  rank 0: True\n")
    assert f"{others}: False" in message
    assert "rank 1" in failure(assert_ranks_agree, torch.tensor([pprank.rank]))


@pytest.mark.pprank
def test_ranks_agree_on_nan_and_on_arrays() -> None:
    import numpy as np
    import torch

    nan = float("nan")
    assert_ranks_agree([nan, np.float32(nan), torch.tensor([1, nan]), {"a": np.array([2.0, nan])}])
    assert_ranks_agree(np.array([None, "x"], dtype=object))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_dtype_shape_and_values_of_arrays_must_agree(pprank: Pprank, library: str) -> None:
    from importlib import import_module

    make = import_module(library)
    first = pprank.is_first_stage
    for mine in (
        make.arange(4) + (0 if first else 1),
        make.arange(4).reshape((4, 1) if first else (2, 2)),
        make.arange(4, dtype=make.int32 if first else make.int64),
    ):
        assert "rank 0" in failure(assert_ranks_agree, mine)


@pytest.mark.pprank
def test_ranks_cannot_agree_on_what_does_not_travel_or_compare() -> None:
    with pytest.raises(
        UsageError, match=r"builtins\.generator cannot be sent.*cannot pickle"
    ) as error:
        assert_ranks_agree(number for number in range(3))
    assert shown_files(error) == {"test_assertions.py"}
    with pytest.raises(UsageError, match=r"Incomparable cannot be compared \(== raises"):
        assert_ranks_agree({"a": Incomparable()})


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("check", "options"),
    [
        (assert_materialized_on_device, {"fields": ["a"]}),
        (assert_kv_balanced, {}),
        (assert_profiler_ready, {}),
        (assert_staging_consumed, {}),
        (assert_materialized_on_device, {}),
    ],
)
def test_errors_show_no_source_of_the_plugin(
    pprank: Pprank, check: Callable[..., None], options: dict[str, Any]
) -> None:
    import torch

    wrong = torch.zeros(1, device=pprank.device) if options else None
    with pytest.raises(UsageError) as error:
        check(wrong, **options)
    assert shown_files(error) == {"test_assertions.py"}


def shown_files(error: pytest.ExceptionInfo[Any]) -> set[str]:
    """Return the files whose source pytest would show."""
    return {Path(entry.path).name for entry in error.traceback if not entry.ishidden(error)}


def test_kv_that_was_not_given_back(
    scheduler: Any, make_schedule_batch: Make, pprank: Pprank
) -> None:
    assert_kv_balanced(scheduler)
    make_schedule_batch([30])
    message = failure(assert_kv_balanced, scheduler)
    assert f"KV is not balanced on rank {pprank.rank}" in message
    assert "KV pool: 30 of 4096 tokens were not given back" in message
    assert "request slots: 1 of 8 were not given back" in message


def test_profiler_needs_dynamic_chunking(scheduler: Any) -> None:
    with pytest.raises(UsageError, match=r"@pytest.mark.sglang\(enable_dynamic_chunking=True\)"):
        assert_profiler_ready(scheduler)
