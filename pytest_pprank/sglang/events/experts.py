"""Decodes what the experts of this rank have made of a batch's tokens (expert parallelism)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_pprank.devices.host_reads import host_values, is_host_readable
from pytest_pprank.sglang.compat import experts
from pytest_pprank.sglang.events.types import ExpertsRan, WrongRow

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import MoeLayer
    from pytest_pprank.sglang.events.hook_points import HookCall

_NEAR = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Tolerance by dtype, as a share of a token's largest number: SGLang sums in another order."""


def experts_ran(call: HookCall) -> ExpertsRan:
    """Compare the output of this rank's experts, before any sum over ranks, with their weights."""
    layer, tokens = call.args[0], call.argument(1, "hidden_states")
    chosen, output = call.argument(2, "topk_output"), call.result
    own = experts.own_experts(layer)
    wrong: tuple[WrongRow, ...] = ()
    known = experts.is_plain(layer, chosen) and is_host_readable(tokens.device)
    if known and tokens.data_ptr() != output.data_ptr():
        wrong = _wrong_rows(layer, own, tokens, chosen, output)
    return ExpertsRan(int(layer.layer_id), own, len(tokens), wrong)


def _wrong_rows(
    layer: MoeLayer, own: range, tokens: torch.Tensor, chosen: object, output: torch.Tensor
) -> tuple[WrongRow, ...]:
    ids, weights = (host_values(tensor) for tensor in experts.choices_of(chosen))
    found = host_values(output).float()
    wanted = _of_own(layer, own, host_values(tokens).float(), ids, weights.float())
    most = wanted.abs().amax(dim=1).maximum(found.abs().amax(dim=1))
    far = (found - wanted).abs().amax(dim=1) > _NEAR.get(output.dtype, 1e-3) * most
    return tuple(
        WrongRow(
            token,
            tuple(int(expert) for expert in ids[token] if int(expert) in own),
            nothing=not found[token].any(),
        )
        for token in far.nonzero()[:, 0].tolist()
    )


def _of_own(
    layer: MoeLayer, own: range, tokens: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the sum over a token's experts of this rank: [tokens, size]."""
    total = torch.zeros_like(tokens)
    for place, expert in enumerate(own):
        share = weights.masked_fill(ids != expert, 0).sum(dim=1)
        rows = share.nonzero()[:, 0]
        if len(rows):
            up, down = (host_values(matrix[place]).float() for matrix in experts.matrices_of(layer))
            gate, values = (tokens[rows] @ up.T).chunk(2, dim=1)
            made = (torch.nn.functional.silu(gate) * values) @ down.T
            total[rows] += share[rows, None] * made
    return total
