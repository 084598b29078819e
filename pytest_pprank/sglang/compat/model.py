"""Accessors for the part of the model on this stage."""

from __future__ import annotations

from typing import Any

from pytest_pprank.sglang.compat.seams import need


def layers_of(runner: Any) -> range:
    """Return the range of layers of a ModelRunner; up to 0.5.15 its own attributes."""
    info = getattr(runner, "layer_info", runner)
    return range(int(need(info, "start_layer")), int(need(info, "end_layer")))


def kv_pool_of(runner: Any) -> Any:
    """Return the KV pool of a ModelRunner; None if it has none of its own."""
    return getattr(runner, "token_to_kv_pool", None)


def logits_of(output: Any) -> Any:
    """Return the model's own output from what a ModelRunner returns."""
    return getattr(output, "logits_output", output)
