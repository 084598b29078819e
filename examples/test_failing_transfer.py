"""KV of one request is lost on the way from one stage of prefill; the next request is not harmed.

pytest -p pytest_pprank examples/test_failing_transfer.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Disagg


# SGLang logs the failure that is planted here as an error, which `logs` would report.
@pytest.mark.pprank(prefill=2, decode=1, sanitize="-logs")
def test_transfer_that_fails_on_one_stage(disagg: Disagg) -> None:
    fault = disagg.fail_transfer(stages=[1])
    lost = disagg.submit(30, max_new_tokens=4)
    disagg.drain()
    reason = disagg.results[lost].finish_reason
    assert reason
    assert reason["type"] == "abort"

    fault.release()
    assert_tokens_equal_reference(disagg.generate([40], max_new_tokens=4))
    assert_kv_balanced(disagg.scheduler, allow_failed_rooms=True)  # of both roles
