"""Expert parallelism without a GPU: SGLang's own torch operators, over the experts of one rank.

With several EP ranks SGLang numbers the experts of each rank from 0, and gives -1 to a token's
experts on other ranks. Its Triton kernels skip those; its torch operators (``moe_forward_native``)
know models that have all experts on each rank only.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING

import torch

from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_pprank.sglang.compat.objects import MoeLayer, TopK

_BY_EXPERT = ("w13_weight", "w2_weight", "w13_weight_bias", "w2_weight_bias")
"""Parameters of a layer that have a row per expert of this rank."""


class _Rows:
    """One row per expert of this rank; any further one is the first again."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows

    def __getitem__(self, expert: int) -> torch.Tensor:
        return self._rows[expert if expert < len(self._rows) else 0]


class _OwnExperts:
    """A layer with this rank's experts, and behind them one for each choice of a token.

    The others take the tokens of other ranks' experts: with a weight of 0, and each of a token's
    choices by itself, because SGLang's operators count a token once per expert.
    """

    def __init__(self, layer: MoeLayer, choices: int) -> None:
        self.num_experts = len(layer.w13_weight) + choices
        self._layer = layer

    def __getattr__(self, name: str) -> object:
        found: object = getattr(self._layer, name)
        return _Rows(found) if name in _BY_EXPERT and isinstance(found, torch.Tensor) else found


def skip_other_experts() -> None:
    """Let SGLang's torch operators for experts skip those of other ranks, in this process."""
    module = import_module("sglang.srt.layers.moe.fused_moe_native")
    native = need(module, "moe_forward_native")
    setattr(module, "moe_forward_native", _of_own_experts(native))  # noqa: B010


def _of_own_experts(native: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @wraps(native)
    def moe_forward_native(
        layer: MoeLayer, x: torch.Tensor, topk_output: TopK, *rest: object
    ) -> torch.Tensor:
        ids = topk_output.topk_ids
        own, choices = len(layer.w13_weight), ids.shape[1]
        if own == layer.num_experts:
            return native(layer, x, topk_output, *rest)
        others = own + torch.arange(choices, dtype=ids.dtype, device=ids.device)
        skipped = topk_output._replace(
            topk_ids=torch.where(ids < 0, others, ids),
            topk_weights=topk_output.topk_weights.masked_fill(ids < 0, 0),
        )
        return native(_OwnExperts(layer, choices), x, skipped, *rest)

    return moe_forward_native
