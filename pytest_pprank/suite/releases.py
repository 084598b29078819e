"""Skips of tests on releases of SGLang."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from pytest_pprank.sglang.static.release import is_in, is_older_than

aborts_end_all_slots = pytest.mark.skipif(
    is_older_than("0.5.16"), reason="known bug abort-misses-other-microbatch-slots, by chance"
)
latent_attention_runs = pytest.mark.skipif(
    is_in(">=0.5.15,<0.5.16") and find_spec("cutlass") is None,
    reason="SGLang 0.5.15's DeepSeek models import cutlass (nvidia-cutlass-dsl), a CUDA package",
)
