"""What a test leaves in the Scheduler is told, and the next test does not see it."""

from __future__ import annotations

import pytest

_SOURCE = """
def test_leaks(scheduler):
    assert scheduler.token_to_kv_pool_allocator.alloc(16) is not None

def test_next(scheduler):
    from pytest_pprank import assert_kv_balanced
    assert_kv_balanced(scheduler)

def test_leaks_and_fails(scheduler):
    scheduler.token_to_kv_pool_allocator.alloc(16)
    assert 0

def test_args_are_read_only(sglang_args):
    sglang_args["page_size"] = 2
"""


def test_a_leak_is_a_warning_of_the_test_that_left_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(_SOURCE)
    result = pytester.runpytest_subprocess("--pp-size=2", "--pprank-device=cpu", "-rA")
    result.assert_outcomes(passed=2, failed=2, warnings=2)
    result.stdout.fnmatch_lines(
        [
            "*rank 0: this test left the Scheduler busy: KV pool: 16 of 4096 tokens*",
            "*rank 1: this test left the Scheduler busy: KV pool: 16 of 4096 tokens*",
        ]
    )
    result.stdout.fnmatch_lines(["*TypeError: 'mappingproxy' object does not support item*"])
