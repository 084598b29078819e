"""What of SGLang is there, without importing any of it."""

from __future__ import annotations

import sys


def runs_models() -> bool:
    """Whether SGLang is imported in this process as far as it runs a model."""
    return "sglang.srt.model_executor.model_runner" in sys.modules
