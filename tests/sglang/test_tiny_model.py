"""The tiny models on disk, and that their output depends on their KV."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import assert_tokens_equal_reference
from pytest_pprank.sglang.model.families import FAMILIES
from pytest_pprank.topology import Sizes

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank

pytest.importorskip("safetensors")


def written(folder: Path, family: str = "llama", **shape: int) -> bytes:
    from pytest_pprank.sglang.model.tiny import write_tiny_model

    return (write_tiny_model(folder, family, **shape) / "model.safetensors").read_bytes()


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    first = written(tmp_path / "a", layers=1)
    assert first == written(tmp_path / "b", layers=1)
    assert first != written(tmp_path / "c", layers=1, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_matches_the_shape(tmp_path: Path, family: str) -> None:
    written(tmp_path / "m", family, layers=3, hidden=256, head_dim=64)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"]) == (3, 4)
    assert config["tie_word_embeddings"] == (family == "qwen3")


def test_concurrent_writers_leave_one_complete_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: written(tmp_path / "m", layers=1), range(4)))
    assert len(set(done)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("stages", "world_size", "model_path", "layers"),
    [
        (1, 1, None, 4),
        (6, 6, "tiny:qwen3", 6),
        (4, 5, None, 4),
        (1, 7, None, 6),
        (1, 7, "tiny:llama:9", 9),
    ],
)
def test_there_is_a_layer_for_each_stage(
    stages: int, world_size: int, model_path: str | None, layers: int, tmp_path: Path
) -> None:
    from pytest_pprank.sglang.model.tiny import tiny_model_for

    group = tmp_path / "group"
    sizes = Sizes(stages, world_size - stages)
    rank = SimpleNamespace(sizes=sizes, device="cpu", workdir=group)
    folder = tiny_model_for(rank, model_path)  # type: ignore[arg-type]
    family = "qwen3" if model_path == "tiny:qwen3" else "llama"
    assert folder == tmp_path / "models" / f"{family}-{layers}-64-cpu"
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == (family, layers)


@pytest.mark.pprank(pp=1)
@pytest.mark.usefixtures("scheduler")  # only for its process, which can import transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_finds_every_weight(tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    written(tmp_path / "m", family)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}


@pytest.mark.pprank(pp=1)
@pytest.mark.usefixtures("scheduler")  # only for its process, which can import transformers
@pytest.mark.parametrize(("dtype", "margin"), [("float16", 0.1), ("bfloat16", 0.5), ("float32", 0)])
def test_tokens_of_a_rounded_model_may_be_a_margin_below_the_best(
    tmp_path: Path, dtype: str, margin: float
) -> None:
    import torch

    from pytest_pprank.sglang.model import reference
    from pytest_pprank.sglang.model.loaded import loaded
    from pytest_pprank.sglang.model.tiny import write_tiny_model

    folder = write_tiny_model(tmp_path / "m", "llama", layers=2, dtype=getattr(torch, dtype))
    model, _ = loaded(str(folder))
    near = 0
    for prompt in ((first, 7, 9) for first in range(20, 40)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        best, tokens = (each.tolist() for each in logits.topk(50))
        for logit, token in zip(best[1:], tokens[1:], strict=True):
            judged = reference.judge(str(folder), prompt, (token,))
            below = best[0] - logit
            if abs(below - margin) > 1e-3:  # one forward may add in another order than the other
                assert (judged.differs_at is None) == (below < margin), (below, judged)
            near += below < margin
        # and what comes after a token that is not the best is compared given that token
        second = int(_next(model, (*prompt, tokens[1])))
        judged = reference.judge(str(folder), prompt, (tokens[1], second))
        assert judged.expected[1].token == second
    assert bool(near) == bool(margin)


def _next(model: Any, tokens: tuple[int, ...]) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()


@pytest.mark.pprank(pp=3)
def test_each_stage_is_connected_with_the_next_one(scheduler: Any, pprank: Pprank) -> None:
    """As on NCCL before the loops run; sanitizer `p2p` sees that each send meets its recv."""
    from pytest_pprank.oplog.record.ledger import open_calls
    from pytest_pprank.sglang.stage.connect import connect_stages

    connect_stages(scheduler, pprank.device)
    assert open_calls() == []


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=pytest.mark.sglang(model_path=f"tiny:{family}"))
        for family in FAMILIES
    ],
)
def test_wrong_kv_gives_wrong_tokens(engine: Engine, pprank: Pprank, family: str) -> None:
    """One stage reads the keys and values of one token in the place of another token's."""
    right, wrong = engine.submit(40, 12), engine.submit(41, 12)
    engine.run_until(lambda: engine.results[wrong].token_ids)
    engine.step(2 * pprank.num_stages)
    if pprank.is_last_stage:
        _overwrite_one_token(engine.scheduler, wrong)
    engine.drain()
    assert engine.scheduler.model_config.hf_config.model_type.replace("_", "-") == family
    assert_tokens_equal_reference(engine.results[right])
    with pytest.raises(AssertionError, match=f"{wrong}: output token") as error:
        assert_tokens_equal_reference(engine.results[wrong])
    assert "logits of the reference" in str(error.value)
    assert "a prompt of 41 tokens" in str(error.value)


def _overwrite_one_token(scheduler: Any, rid: str) -> None:
    batches = [*scheduler.running_mbs, *scheduler.mbs]
    reqs = [req for batch in batches if batch is not None for req in batch.reqs]
    slot = next(req.kv.req_pool_idx for req in reqs if req.rid == rid)
    first, second = scheduler.req_to_token_pool.req_to_token[slot, 3:5].tolist()
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    buffers = getattr(pool, "kv_buffer", None) or [*pool.k_buffer, *pool.v_buffer]
    for buffer in buffers:
        buffer[first] = buffer[second]
