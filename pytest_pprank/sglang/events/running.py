"""Which parts of SGLang are imported in this process."""

from __future__ import annotations

import sys


def runs_models() -> bool:
    """Return whether the part of SGLang that runs models is imported in this process."""
    return "sglang.srt.model_executor.model_runner" in sys.modules
