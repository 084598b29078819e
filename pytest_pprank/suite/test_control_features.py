"""Control requests with an effect of their own: memory, profiles, adapters, end of the loops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference
from pytest_pprank.sglang.static.release import is_older_than
from pytest_pprank.suite.controls import PROFILE
from pytest_pprank.suite.moments import CHUNK, amid_a_prompt, amid_decoding, check, idle

if TYPE_CHECKING:
    import torch

    from pytest_pprank import Disagg, Engine, Pprank
    from pytest_pprank.sglang.compat.objects import Options
    from pytest_pprank.sglang.driver.control import Control

pytestmark = pytest.mark.sglang(chunked_prefill_size=CHUNK)


def of_memory(engine: Engine, what: str, tags: list[str] | None) -> None:
    """Let all stages release or resume memory."""
    engine.control(f"{what}_memory_occupation", tags=tags).wait()


class TestMemory:
    """Between release and resume nothing is asked for; then weights and cache are as if new."""

    @pytest.mark.parametrize("tags", [["kv_cache"], None], ids=["cache", "all"])
    def test_released_and_resumed(self, engine: Engine, tags: list[str] | None) -> None:
        prompt = [*range(1000, 1000 + CHUNK + 9)]
        for steps in (1, 4):  # just ended, idle
            (result,) = engine.generate([prompt], 3)
            assert result.cached_tokens == 0, "KV that was released is found in the cache"
            engine.step(steps)
            for what in ("release", "release", "resume"):
                of_memory(engine, what, tags)
                engine.step(2)
        (result,) = engine.generate([prompt], 3)
        assert result.cached_tokens == 0
        check(engine)

    @pytest.mark.pprank(prefill=2, decode=1)
    def test_roles(self, disagg: Disagg) -> None:
        disagg.generate([30], 3)
        disagg.step(4)
        of_memory(disagg, "release", None)
        disagg.step(2)
        of_memory(disagg, "resume", None)
        amid_decoding(disagg)
        check(disagg)

    @pytest.mark.pprank(known_bug="release-of-memory-in-use-ends-the-scheduler")
    def test_released_while_requests_run(self, engine: Engine) -> None:
        """It is refused, and they go on."""
        amid_decoding(engine)
        of_memory(engine, "release", ["kv_cache"])
        check(engine)

    @pytest.mark.pprank(known_bug="resume-of-memory-in-use-ends-the-scheduler")
    def test_resumed_twice(self, engine: Engine) -> None:
        idle(engine)
        for what in ("release", "resume", "resume"):
            of_memory(engine, what, ["kv_cache"])
        check(engine)


START: Options = {PROFILE: "START_PROFILE"}
STOP: Options = {PROFILE: "STOP_PROFILE"}


@pytest.mark.skipif(
    is_older_than("0.5.19"),
    reason="torch's profiler may kill the process when its garbage is collected (SIGSEGV); from "
    "0.5.19 on SGLang collects it at once",
)
class TestProfile:
    """A trace of each rank, of what ran between start and stop."""

    def test_started_and_stopped(self, engine: Engine, pprank: Pprank) -> None:
        amid_a_prompt(engine)
        folder = self.start(engine, pprank, "whole")
        engine.submit(25, 3)
        engine.step(4 * pprank.num_stages)
        assert engine.control("profile", **STOP, wait=True).answer.success
        assert len(traces_in(folder)) == pprank.num_stages * pprank.tp_size
        check(engine)

    def test_number_of_steps(self, engine: Engine, pprank: Pprank) -> None:
        """It ends by itself; prompts and decoding have a trace each."""
        idle(engine)
        folder = self.start(engine, pprank, "steps", {"num_steps": 2, "profile_by_stage": True})
        engine.submit(3 * CHUNK, 9)
        engine.drain()
        assert len(traces_in(folder)) == 2 * pprank.num_stages * pprank.tp_size
        assert not engine.control("profile", **STOP, wait=True).answer.success
        check(engine)

    def start(
        self, engine: Engine, pprank: Pprank, name: str, fields: Options | None = None
    ) -> Path:
        """Start a profile, and return the folder of its traces."""
        folder = pprank.workdir / name
        start = engine.control(
            "profile",
            **START,
            output_dir=str(folder),
            profile_id=name,
            activities=["CPU"],
            with_stack=False,
            **(fields or {}),
        )
        assert start.wait().success
        return folder


def traces_in(folder: Path) -> list[str]:
    """Return the names of the traces, which all stages have written."""
    return sorted(path.name for path in folder.glob("*.trace.json.gz"))


@pytest.mark.pprank(known_bug="expert-recorder-that-is-off-ends-the-scheduler")
def test_recorder_of_experts_that_is_off(engine: Engine) -> None:
    """The request has an answer, which cannot say that it is refused."""
    amid_decoding(engine)
    engine.control("expert_distribution", action="START_RECORD", wait=True)
    check(engine)


@pytest.mark.skipif(is_older_than("0.5.14"), reason="SGLang 0.5.13 has no control request shutdown")
@pytest.mark.pprank(known_bug="pipelines-do-not-shut-down")
def test_shutdown(engine: Engine) -> None:
    """The event loop of each stage ends, and then the Scheduler gives back what it holds."""
    from pytest_pprank.sglang.driver.lockstep import EventLoopFailed

    idle(engine)
    engine.control("shutdown")
    with pytest.raises(EventLoopFailed, match="event loop returned"):
        engine.step(4)


ADAPTED = ["q_proj", "v_proj"]
RANK = 8


# SGLang pins memory for adapters, which device cpu has not; on cuda nobody has tried it
@pytest.mark.pprank(device="sim")
@pytest.mark.sglang(
    enable_lora=True,
    max_lora_rank=RANK,
    lora_target_modules=ADAPTED,
    lora_backend="torch_native",
    max_loras_per_batch=3,
)
class TestAdapters:
    """Requests of two adapters and of none in one batch, chunked and decoded.

    The reference of an adapter is the model with its weights added.
    """

    def test_loaded_and_unloaded(self, engine: Engine, pprank: Pprank) -> None:
        own = str(engine.scheduler.server_args.model_path)
        written = {name: write_adapter(name, own, pprank) for name in ("one", "two")}
        large = write_config(pprank.workdir / "large", 2 * RANK)
        models: dict[str, str] = {}
        for go_to, name in ((idle, "one"), (amid_a_prompt, "two")):
            go_to(engine)
            path = written[name][0]
            load, refused = load_adapters(engine, {name: path, f"large {name}": large})
            assert load.wait().success, load.answer
            assert not refused.wait().success, "its rank is larger than SGLang was told"
            for length in (2 * CHUNK + 5, 20):
                rid = engine.submit(length, 5, fields={"lora_id": name})
                models[rid] = str(written[name][1])
                engine.submit(length, 5)
        engine.drain()
        for name in written:
            unload = engine.control("unload_lora_adapter", lora_name=name, lora_id=name, wait=True)
            assert unload.answer.success, unload.answer
        engine.generate([25], 3)
        results = [
            replace(result, model_path=models.get(rid, own))
            for rid, result in engine.results.items()
        ]
        assert_tokens_equal_reference(sorted(results, key=lambda result: result.model_path))
        assert_kv_balanced(engine.scheduler)


def load_adapters(engine: Engine, paths: Mapping[str, Path]) -> list[Control]:
    """Load adapters, all at once, by name."""
    return [
        engine.control("load_lora_adapter", lora_name=name, lora_path=str(path), lora_id=name)
        for name, path in paths.items()
    ]


def write_adapter(name: str, model: str, pprank: Pprank) -> tuple[Path, Path]:
    """Write an adapter of a model, and the model with the adapter's weights added; return both."""
    import torch
    from safetensors.torch import save_file

    from pytest_pprank.sglang.model.tiny import written_once
    from pytest_pprank.sglang.model.weights import weights_of, write_changed

    generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
    parts: dict[str, torch.Tensor] = {}
    added = {}
    for key, weight in weights_of(model).items():
        if not any(module in key for module in ADAPTED):
            continue
        rows, columns = weight.shape
        down = torch.randn(RANK, columns, generator=generator) / columns**0.5
        up = torch.randn(rows, RANK, generator=generator) / RANK**0.5
        place = f"base_model.model.{key.removesuffix('.weight')}"
        parts |= {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}
        added[key] = weight + 2 * up @ down

    def fill(folder: Path) -> None:
        save_file(parts, folder / "adapter_model.safetensors")

    adapter = written_once(pprank.workdir / name, fill, "adapter_model.safetensors")
    write_config(adapter, RANK)
    return adapter, write_changed(pprank.workdir / f"{name}-added", model, added)


def write_config(folder: Path, rank: int) -> Path:
    """Write the configuration of an adapter of that rank; return the folder."""
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ADAPTED,
        "bias": "none",
    }
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
