"""Two prefilled batches become one that decodes, as when a new request joins the running ones.

pytest -p pytest_pprank --pp-size 2 examples/test_merged_batches.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_pprank import assert_materialized_on_device


def test_merged_batches_decode(
    make_schedule_batch: Callable[..., Any], make_forward_batch: Callable[[Any], Any]
) -> None:
    running, joining = make_schedule_batch([5, 9]), make_schedule_batch([7])
    for batch in (running, joining):
        assert_materialized_on_device(make_forward_batch(batch))
    running.merge_batch(joining)
    running.prepare_for_decode()  # merging has dropped the KV locations: these are the next ones
    decode = make_forward_batch(running)
    assert_materialized_on_device(decode)
    assert decode.out_cache_loc.shape == (3,)
