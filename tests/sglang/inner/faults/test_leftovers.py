"""What a test leaves in the Scheduler is reported, and the next test does not see it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_pprank import assert_kv_balanced


def test_leaks(scheduler: Any) -> None:
    assert scheduler.token_to_kv_pool_allocator.alloc(16) is not None


def test_next(scheduler: Any) -> None:
    assert_kv_balanced(scheduler)


def test_leaks_and_fails(scheduler: Any) -> None:
    scheduler.token_to_kv_pool_allocator.alloc(16)
    pytest.fail("to see that the rest comes back all the same")


def test_args_are_read_only(sglang_args: Any) -> None:
    sglang_args["page_size"] = 2
