"""Kinds of tiny models: the config, and the names, shapes and scales of the weights.

To add a kind, add a `Family` to the table at the end. Imports neither torch nor sglang.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_PEAK = 2.0
"""Gain of the query and key projections: spreads the attention logits by about _PEAK ** 2."""

_WEIGHT_OF_ATTENTION = 3.0
"""Gain of the value projections: makes attended tokens count for more than the token itself."""

_EXPERTS = 4
_EXPERTS_PER_TOKEN = 2


@dataclass(frozen=True)
class Shape:
    """The size of a model; `hidden` must be a multiple of ``2 * head_dim``."""

    layers: int
    hidden: int = 64
    head_dim: int = 16

    @property
    def heads(self) -> int:
        """Number of query heads of a layer."""
        return self.hidden // self.head_dim

    @property
    def kv(self) -> int:
        """Width of a layer's keys: there are half as many key heads as query heads."""
        return self.hidden // 2


@dataclass(frozen=True)
class Weight:
    """One parameter.

    With `columns`: a random matrix [rows, columns] that multiplies its input's variance by
    ``gain ** 2``. Without: a vector of `rows` values, all equal to `gain`.
    """

    name: str
    rows: int
    columns: int | None = None
    gain: float = 1.0


@dataclass(frozen=True)
class Family:
    """A kind of model.

    `config`: the entries of its config.json beyond those that all kinds share. `layer`: yields the
    weights of one layer, named without the layer's prefix. `tied`: whether the embedding is also
    the output matrix. `experts`: how many a layer has.
    """

    config: Callable[[Shape], dict[str, object]]
    layer: Callable[[Shape, int], Iterator[Weight]]
    tied: bool = False
    experts: int = 0


def _attention(shape: Shape) -> Iterator[Weight]:
    yield Weight("self_attn.q_proj.weight", shape.hidden, shape.hidden, _PEAK)
    yield Weight("self_attn.k_proj.weight", shape.kv, shape.hidden, _PEAK)
    yield Weight("self_attn.v_proj.weight", shape.kv, shape.hidden, _WEIGHT_OF_ATTENTION)
    yield Weight("self_attn.o_proj.weight", shape.hidden, shape.hidden)


def _normed_attention(shape: Shape) -> Iterator[Weight]:
    """Yield attention with queries and keys normed per head: the norms carry the gain."""
    yield from _attention(shape)
    yield Weight("self_attn.q_norm.weight", shape.head_dim, gain=_PEAK)
    yield Weight("self_attn.k_norm.weight", shape.head_dim, gain=_PEAK)


def _latent_attention(shape: Shape) -> Iterator[Weight]:
    """Yield multi-head latent attention, which caches a latent and a rotated part per token."""
    latent, rotated = _latent(shape)
    # the latent projection feeds both keys and values
    gain = _WEIGHT_OF_ATTENTION
    queries = shape.heads * (shape.head_dim + rotated)
    width = shape.heads * 2 * shape.head_dim
    yield Weight("self_attn.q_proj.weight", queries, shape.hidden, _PEAK**2 / gain)
    yield Weight("self_attn.kv_a_proj_with_mqa.weight", latent + rotated, shape.hidden, gain)
    yield Weight("self_attn.kv_a_layernorm.weight", latent)
    yield Weight("self_attn.kv_b_proj.weight", width, latent, gain)
    yield Weight("self_attn.o_proj.weight", shape.hidden, shape.hidden)


def _mlp(shape: Shape, at: str = "mlp", inner: int | None = None) -> Iterator[Weight]:
    inner = inner if inner is not None else 2 * shape.hidden
    yield Weight(f"{at}.gate_proj.weight", inner, shape.hidden)
    yield Weight(f"{at}.up_proj.weight", inner, shape.hidden)
    yield Weight(f"{at}.down_proj.weight", shape.hidden, inner)


def _experts(shape: Shape) -> Iterator[Weight]:
    yield Weight("mlp.gate.weight", _EXPERTS, shape.hidden, _PEAK)
    for expert in range(_EXPERTS):
        yield from _mlp(shape, f"mlp.experts.{expert}", shape.kv)


def _norms(shape: Shape) -> Iterator[Weight]:
    yield Weight("input_layernorm.weight", shape.hidden)
    yield Weight("post_attention_layernorm.weight", shape.hidden)


def _heads(shape: Shape) -> dict[str, object]:
    return {"num_key_value_heads": shape.heads // 2, "head_dim": shape.head_dim}


def _latent(shape: Shape) -> tuple[int, int]:
    """Width of what latent attention keeps of a token: the latent, and the rotated part.

    SGLang's Triton kernel for it (kernels/ops/attention/decode_attention.py) knows 512 and 64, and
    256 and 32; for others it takes keys and values to be padded alike.
    """
    if shape.hidden == 256:
        return 256, 32
    return shape.hidden // 2, shape.head_dim


def _llama_layer(shape: Shape, index: int) -> Iterator[Weight]:  # noqa: ARG001
    yield from _attention(shape)
    yield from _mlp(shape)
    yield from _norms(shape)


def _qwen3_layer(shape: Shape, index: int) -> Iterator[Weight]:  # noqa: ARG001
    yield from _normed_attention(shape)
    yield from _mlp(shape)
    yield from _norms(shape)


def _qwen3_moe_layer(shape: Shape, index: int) -> Iterator[Weight]:  # noqa: ARG001
    yield from _normed_attention(shape)
    yield from _experts(shape)
    yield from _norms(shape)


def _deepseek_layer(shape: Shape, index: int) -> Iterator[Weight]:
    yield from _latent_attention(shape)
    if index == 0:
        yield from _mlp(shape)
    else:
        yield Weight("mlp.gate.e_score_correction_bias", _EXPERTS, gain=0.0)
        yield from _experts(shape)
        yield from _mlp(shape, "mlp.shared_experts", shape.kv)
    yield from _norms(shape)


def _moe_config(shape: Shape) -> dict[str, object]:
    return {"num_experts_per_tok": _EXPERTS_PER_TOKEN, "moe_intermediate_size": shape.kv}


def _deepseek_config(shape: Shape) -> dict[str, object]:
    latent, rotated = _latent(shape)
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": shape.heads,
        "q_lora_rank": None,
        "kv_lora_rank": latent,
        "qk_nope_head_dim": shape.head_dim,
        "qk_rope_head_dim": rotated,
        "v_head_dim": shape.head_dim,
        "n_routed_experts": _EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        # SGLang has no other rotary embedding for latent attention on a CPU (get_rope_cpu)
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        **_moe_config(shape),
    }


FAMILIES = {
    "llama": Family(
        lambda shape: {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **_heads(shape),
        },
        _llama_layer,
    ),
    "qwen3": Family(
        lambda shape: {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            **_heads(shape),
        },
        _qwen3_layer,
        tied=True,
    ),
    "qwen3-moe": Family(
        lambda shape: {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "num_experts": _EXPERTS,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            **_heads(shape),
            **_moe_config(shape),
        },
        _qwen3_moe_layer,
        experts=_EXPERTS,
    ),
    "deepseek-v3": Family(_deepseek_config, _deepseek_layer, experts=_EXPERTS),
}
