"""Skips of tests on releases of SGLang."""

from __future__ import annotations

import pytest

from pytest_pprank.sglang.static.release import is_older_than

from_0517 = pytest.mark.skipif(
    is_older_than("0.5.17"), reason="what SGLang does here before 0.5.17 was not looked at"
)
aborts_end_all_slots = pytest.mark.skipif(
    is_older_than("0.5.16"), reason="known bug abort-misses-other-microbatch-slots, by chance"
)
