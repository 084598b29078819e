"""Accessors for a layer of experts, ``FusedMoE`` in srt/layers/moe/fused_moe_triton/layer.py."""

from __future__ import annotations

from typing import Any

from pytest_pprank.sglang.compat.seams import need

_BIASES = ("w13_weight_bias", "w2_weight_bias")


def own_experts(layer: Any) -> range:
    """Return the numbers of the experts whose weights this rank has, among those of all ranks."""
    count = int(need(layer, "num_local_experts"))
    first = int(need(layer, "moe_ep_rank")) * count
    return range(first, first + count)


def is_plain(layer: Any, chosen: Any) -> bool:
    """Return whether the layer's output follows from weights that are plain matrices.

    False for quantized and packed weights, biases, other activations than SiLU, weights of tokens
    that are applied to the input, shared experts among the others, and choices that are made inside
    a kernel.
    """
    config, weights = need(layer, "moe_runner_config"), getattr(layer, "w13_weight", None)
    return (
        weights is not None
        and weights.dim() == 3
        and weights.is_floating_point()
        and weights.shape[2] == getattr(layer, "hidden_size", 0)
        and all(getattr(layer, name, None) is None for name in _BIASES)
        and config.activation == "silu"
        and getattr(config, "gemm1_alpha", None) is None
        and not config.apply_router_weight_on_input
        and not getattr(layer, "num_fused_shared_experts", 0)
        and getattr(chosen, "topk_ids", None) is not None
    )


def choices_of(chosen: Any) -> tuple[Any, Any]:
    """Return the experts of each token, by their numbers among all ranks, and their weights."""
    return need(chosen, "topk_ids"), need(chosen, "topk_weights")


def matrices_of(layer: Any) -> tuple[Any, Any]:
    """Return the matrices of this rank's experts: gate and up one below the other, and down."""
    return need(layer, "w13_weight"), need(layer, "w2_weight")
