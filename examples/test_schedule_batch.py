"""Real batches on every stage: what is staged, what reaches the device.

pytest -p pytest_pprank --pp-size 2 examples/test_schedule_batch.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_pprank import (
    assert_materialized_on_device,
    assert_ranks_agree,
    assert_staging_consumed,
)


def test_extend_stages_its_ids_until_the_forward(
    schedule_batch: Any, make_forward_batch: Callable[[Any], Any]
) -> None:
    assert schedule_batch.input_ids is None  # still on the host, in prefill_input_ids_cpu
    forward_batch = make_forward_batch(schedule_batch)
    assert_staging_consumed(schedule_batch)
    assert_materialized_on_device(forward_batch)


@pytest.mark.parametrize("mode", ["extend", "decode"])
def test_stages_feed_the_same_ids(
    make_schedule_batch: Callable[..., Any], make_forward_batch: Callable[[Any], Any], mode: str
) -> None:
    batch = make_schedule_batch([[1, 2, 3], 20], mode=mode)
    assert_ranks_agree(make_forward_batch(batch).input_ids, what=f"input ids of the {mode} batch")
