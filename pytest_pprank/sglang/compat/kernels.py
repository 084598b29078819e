"""SGLang's operators that have an implementation for each platform."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any


def fused_operator() -> Any:
    """Return SGLang's operator with several implementations (from 0.5.21), None without one."""
    with suppress(ModuleNotFoundError):
        found = import_module("sglang.kernels.fused_op").BaseFusedOp
        return found if hasattr(found, "register_oot_forward") else None
    return None
