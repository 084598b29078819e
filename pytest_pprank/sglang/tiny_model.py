"""A tiny random Llama on disk, so that wrong KV gives wrong tokens.

SGLang's load_format="dummy" hides KV bugs: its weights are so small that the last token
alone decides. Here every matrix keeps its input's variance and attention is peaked.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from pytest_pprank.sglang.static import TINY_LAYERS

if TYPE_CHECKING:
    from pytest_pprank.worker.handle import Pprank

VOCABULARY = 10240
"""SGLang's dynamic-chunk profiler draws token ids below 10000."""

CONTEXT = 4096
_PEAK = 2.0
"""Gain of the query and key projections: their logits then spread by about _PEAK ** 2."""


def write_tiny_llama(
    folder: Path,
    *,
    layers: int = TINY_LAYERS,
    seed: int = 0,
    hidden: int = 64,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the model into `folder` unless it is there, and return `folder`.

    `hidden` must be a multiple of ``2 * head_dim``; on CUDA SGLang's kernels want hidden a
    multiple of 256 and head_dim 64. Several ranks may call this at once: the folder appears
    complete, by a rename. Equal arguments give equal bytes.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        weights = _weights(layers, seed, hidden)
        save_file(
            {name: weight.to(dtype) for name, weight in weights.items()},
            draft / "model.safetensors",
            metadata={"format": "pt"},
        )
        config = _config(layers, hidden, head_dim, str(dtype).removeprefix("torch."))
        (draft / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        os.rename(draft, folder)
    except OSError:
        # A peer was first: its folder holds the same bytes.
        if not (folder / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def tiny_model_for(pprank: Pprank) -> Path:
    """Return the tiny model that fits this rank's device; all worker groups of a run share it."""
    models = pprank.workdir.parent / "models"
    if not pprank.device.startswith("cuda"):
        return write_tiny_llama(models / "llama-cpu")
    # the shapes for which SGLang's CUDA kernels are built
    return write_tiny_llama(models / "llama-cuda", hidden=256, head_dim=64, dtype=torch.bfloat16)


def _config(layers: int, hidden: int, head_dim: int, dtype: str) -> dict[str, object]:
    heads = hidden // head_dim
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": head_dim,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _weights(layers: int, seed: int, hidden: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * (gain / columns**0.5)

    kv = hidden // 2
    weights = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, hidden, generator=generator),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": matrix(VOCABULARY, hidden),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.self_attn.q_proj.weight": matrix(hidden, hidden, _PEAK),
            f"{at}.self_attn.k_proj.weight": matrix(kv, hidden, _PEAK),
            f"{at}.self_attn.v_proj.weight": matrix(kv, hidden),
            f"{at}.self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{at}.mlp.gate_proj.weight": matrix(2 * hidden, hidden),
            f"{at}.mlp.up_proj.weight": matrix(2 * hidden, hidden),
            f"{at}.mlp.down_proj.weight": matrix(hidden, 2 * hidden),
            f"{at}.input_layernorm.weight": torch.ones(hidden),
            f"{at}.post_attention_layernorm.weight": torch.ones(hidden),
        }
    return weights
