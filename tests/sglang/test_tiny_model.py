"""The tiny model on disk."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("safetensors")


def written(folder: Path, **shape: int) -> bytes:
    from pytest_pprank.sglang.tiny_model import write_tiny_llama

    return (write_tiny_llama(folder, **shape) / "model.safetensors").read_bytes()


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    first = written(tmp_path / "a", layers=1)
    assert first == written(tmp_path / "b", layers=1)
    assert first != written(tmp_path / "c", layers=1, seed=1)


def test_config_matches_the_shape(tmp_path: Path) -> None:
    written(tmp_path / "m", layers=3, hidden=256, head_dim=64)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"]) == (3, 4)
    assert config["num_key_value_heads"] * 2 == config["num_attention_heads"]


def test_concurrent_writers_leave_one_complete_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: written(tmp_path / "m", layers=1), range(4)))
    assert len(set(done)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
