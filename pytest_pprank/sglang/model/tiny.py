"""Tiny random models on disk whose tokens depend on the KV, so that wrong KV gives wrong tokens.

SGLang's load_format="dummy" hides KV bugs: its weights are so small that the last token alone
decides the output. Here every matrix preserves its input's variance and attention is peaked.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from pytest_pprank.sglang.model.families import FAMILIES, Family, Shape, Weight
from pytest_pprank.sglang.static.parallel import tiny_default
from pytest_pprank.sglang.static.release import TINY_DEFAULT, TINY_LAYERS, Tiny, tiny_asked

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.topology import Role

VOCABULARY = 10240
"""Above 10000, because SGLang's dynamic-chunk profiler draws token ids below 10000."""

CONTEXT = 4096
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def write_tiny_model(
    folder: Path,
    family: str = TINY_DEFAULT,
    *,
    layers: int = TINY_LAYERS,
    seed: int = 0,
    hidden: int = 64,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the model into `folder` unless it exists, and return `folder`.

    `family`: a key of `families.FAMILIES`. `hidden` must be a multiple of ``2 * head_dim``; on CUDA
    SGLang's kernels need `hidden` to be a multiple of 256 and `head_dim` 64. Several ranks may call
    this at once (`written_once`). Equal arguments give equal bytes.
    """
    shape, kind = Shape(layers, hidden, head_dim), FAMILIES[family]

    def fill(draft: Path) -> None:
        save_file(
            {name: weight.to(dtype) for name, weight in _weights(kind, shape, seed)},
            draft / WEIGHTS,
            metadata={"format": "pt"},
        )
        config = _config(kind, shape, str(dtype).removeprefix("torch."))
        (draft / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")

    return written_once(folder, fill)


def written_once(folder: Path, fill: Callable[[Path], None], last: str = CONFIG) -> Path:
    """Let `fill` write into `folder`, unless its file `last` exists; return `folder`.

    Several ranks may call this at once, with equal results of `fill`: it gets a folder of its own,
    which a rename puts in place.
    """
    if (folder / last).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(draft)
        os.rename(draft, folder)
    except OSError:
        # Another rank was first: its folder holds the same bytes.
        if not (folder / last).is_file():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def tiny_model_for(pprank: Pprank, model_path: str | None = None) -> Path:
    """Return the tiny model for this rank's device; all worker groups of a run share it.

    `model_path`: ``tiny:NAME`` or ``tiny:NAME:LAYERS``; None for the default. Without LAYERS the
    model has at least one layer per stage of the larger role, because roles that transfer KV must
    have the same number of layers.
    """
    roles = pprank.sizes.roles
    name, given = tiny_asked(model_path) or Tiny(tiny_default(pprank.sizes))
    models = pprank.workdir.parent / "models"
    layers = given or max(TINY_LAYERS, *(role.stages for role in roles))
    if not pprank.device.startswith("cuda"):
        hidden = 64 * max(_widths(role, FAMILIES[name]) for role in roles)
        folder = models / f"{name}-{layers}-{hidden}-cpu"
        return write_tiny_model(folder, name, layers=layers, hidden=hidden)
    # SGLang's CUDA kernels are built for these shapes
    return write_tiny_model(
        models / f"{name}-{layers}-cuda",
        name,
        layers=layers,
        hidden=256,
        head_dim=64,
        dtype=torch.float16,  # an eighth of bfloat16's rounding; there is no float32 path
    )


def _widths(role: Role, family: Family) -> int:
    """Return how often the least width a model must have on a CPU for the ranks of a stage.

    SGLang pads what it cannot divide there: experts to 32 columns a rank, with memory that it does
    not clear, and key heads to one a rank, also where those of DP ranks have more.
    """
    if family.experts:
        return role.tp
    return max(1, role.tp // 2) if role.shares.dp > 1 else 1


def _config(family: Family, shape: Shape, dtype: str) -> dict[str, object]:
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": 2 * shape.hidden,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": family.tied,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **family.config(shape),
    }


def _weights(family: Family, shape: Shape, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    yield from _ends(family, shape, generator)
    for index in range(shape.layers):
        for weight in family.layer(shape, index):
            yield f"model.layers.{index}.{weight.name}", _tensor(weight, generator)


def _ends(
    family: Family, shape: Shape, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    embedding = torch.randn(VOCABULARY, shape.hidden, generator=generator)
    norm = torch.ones(shape.hidden)
    if family.tied:
        embedding /= shape.hidden**0.5
        # else the last token's own embedding, which is part of the sum, would decide the output
        norm = torch.randint(0, 2, (shape.hidden,), generator=generator) * 2.0 - 1.0
    else:
        output = Weight("lm_head.weight", VOCABULARY, shape.hidden)
        yield output.name, _tensor(output, generator)
    yield "model.embed_tokens.weight", embedding
    yield "model.norm.weight", norm


def _tensor(weight: Weight, generator: torch.Generator) -> torch.Tensor:
    if weight.columns is None:
        return torch.full((weight.rows,), weight.gain)
    values = torch.randn(weight.rows, weight.columns, generator=generator)
    return values * (weight.gain / weight.columns**0.5)
