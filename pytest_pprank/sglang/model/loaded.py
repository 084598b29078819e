"""The tiny model in transformers, on the CPU: its logits and hidden states, without SGLang."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TIE = {"torch.float32": 1e-4, "torch.float16": 3e-2, "torch.bfloat16": 1e-1}
"""Logits closer than this may swap order in SGLang, which sums in another order."""


@functools.lru_cache(maxsize=2)
def loaded(model_path: str) -> tuple[Any, str]:
    """Return the model in float32, so that only SGLang rounds, and the name of its own dtype."""
    transformers = import_module("transformers")
    logging = transformers.utils.logging
    if bar := getattr(logging, "disable_progress_bar", None):
        bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_path, torch_dtype="auto", attn_implementation="eager"
    ).eval()
    dtype = str(model.dtype)
    return model.float(), dtype


def logits_of(model_path: str, tokens: Sequence[int], last: int = 0) -> torch.Tensor:
    """Return the float32 logits after each of `tokens`, or after the `last` ones: [n, vocabulary].

    Only those asked for are computed: the output matrix is most of a tiny model's work.
    """
    import torch

    model, _ = loaded(model_path)
    with torch.inference_mode():
        ids = torch.tensor([[*tokens]], dtype=torch.int64)
        logits: torch.Tensor = model(input_ids=ids, logits_to_keep=last).logits[0].float()
    return logits


def hidden_states_of(model_path: str, tokens: Sequence[int]) -> torch.Tensor:
    """Return what the output matrix gets for each token, after the last norm: [n, hidden]."""
    import torch

    model, _ = loaded(model_path)
    with torch.inference_mode():
        out = model.model(input_ids=torch.tensor([[*tokens]], dtype=torch.int64))
    states: torch.Tensor = out.last_hidden_state[0].float()
    return states


def tie_of(model_path: str) -> float:
    """Return the difference up to which two logits count as equal."""
    return TIE.get(loaded(model_path)[1], 1e-4)
