"""The part of the model on this stage, and what it gives."""

from __future__ import annotations

from typing import Any

from pytest_pprank.sglang.compat.seams import need


def layers_of(runner: Any) -> range:
    """Return which layers of the model a ModelRunner has; up to 0.5.15 it says so itself."""
    held = getattr(runner, "layer_info", runner)
    return range(int(need(held, "start_layer")), int(need(held, "end_layer")))


def kv_pool_of(runner: Any) -> Any:
    """Return the KV pool of a ModelRunner, None where it has none of its own."""
    return getattr(runner, "token_to_kv_pool", None)


def logits_of(output: Any) -> Any:
    """Return what the model itself gave, of what a ModelRunner returns."""
    return getattr(output, "logits_output", output)
