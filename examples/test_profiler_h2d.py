"""The founding case: SGLang PR 26883.

`ScheduleBatch.prepare_for_extend` leaves the token ids staged on the host. The pipeline's profiler
once forgot to bring them to the device; SGLang caught the error, logged a warning, turned dynamic
chunking off and lost KV slots. Nobody noticed.

Green, and then red with the fix of that PR taken out:

    pytest -p pytest_pprank --pp-size 2 examples/test_profiler_h2d.py
    pytest -p pytest_pprank --pp-size 2 examples/test_profiler_h2d.py --pprank-revert 26883
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_pprank import assert_profiler_ready


@pytest.mark.sglang(enable_dynamic_chunking=True)
def test_profiler_is_ready(scheduler: Any) -> None:
    assert_profiler_ready(scheduler)
