"""Weights of a model on disk: read, changed, and as SGLang takes them out of a message."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from pytest_pprank.sglang.model.tiny import CONFIG, WEIGHTS, written_once

if TYPE_CHECKING:
    import torch

    from pytest_pprank.rank.handle import Pprank


def weights_of(model_path: str | Path) -> dict[str, torch.Tensor]:
    """Return the weights of a tiny model by their name on disk; tensors on the host."""
    loaded: dict[str, torch.Tensor] = load_file(Path(model_path) / WEIGHTS)
    return loaded


def write_changed(
    folder: Path, model_path: str | Path, changes: Mapping[str, torch.Tensor]
) -> Path:
    """Write the model with some weights replaced into `folder`, once; return `folder`."""

    def fill(draft: Path) -> None:
        shutil.copy(Path(model_path) / CONFIG, draft)
        whole = {**weights_of(model_path), **changes}
        whole = {name: weight.contiguous() for name, weight in whole.items()}
        save_file(whole, draft / WEIGHTS, metadata={"format": "pt"})

    return written_once(folder, fill)


def serialized(weights: Mapping[str, torch.Tensor], pprank: Pprank) -> list[bytes]:
    """Return weights as the field ``serialized_named_tensors`` of SGLang's messages.

    A call of all ranks. There is one entry for each rank of a stage (tensor parallelism), all with
    whole weights, of which SGLang takes the rank's share. The weights are in the bytes: torch's own
    pickling between processes hands shared memory over to one reader, and every stage reads the
    same message.
    """
    entry = bytes(pprank.broadcast(pickle.dumps([*weights.items()])))
    return [entry] * max(role.tp for role in pprank.sizes.roles)
