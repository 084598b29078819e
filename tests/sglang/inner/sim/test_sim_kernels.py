"""SGLang's layers and attention on device sim are one kernel each, with unchanged values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.pprank(pp=1, device="sim"), pytest.mark.sglang()]


def work_of(call: Any) -> tuple[Any, int]:
    """Return the result of `call`, and how many pieces of work it has enqueued."""
    stream = torch.get_device_module("sim").current_stream()
    before = stream.clock[stream.stream_id]
    return call(), stream.clock[stream.stream_id] - before


def cpu(value: Any) -> list[torch.Tensor]:
    return [one.cpu() for one in value] if isinstance(value, tuple) else [value.cpu()]


def arguments(layer: Any) -> list[torch.Tensor]:
    size = getattr(layer, "hidden_size", None) or 4 * getattr(layer, "head_size", 16)
    x = torch.rand(3, size, device="sim", dtype=torch.bfloat16)
    if type(layer).__name__ == "RotaryEmbedding":
        return [torch.arange(3, device="sim") + 5, x, x * 2]
    return [x, x * 2] if type(layer).__name__ == "RMSNorm" else [x]


def layers_of(scheduler: Any) -> dict[str, Any]:
    """Return one layer of each kind that has a kernel; the tiny models lack the last kind."""
    from sglang.srt.layers.activation import GeluAndMul

    model = scheduler.tp_worker.model_runner.model
    found = {type(layer).__name__: layer for layer in model.modules()}
    layers = {name: found[name] for name in ("RMSNorm", "SiluAndMul", "RotaryEmbedding")}
    return {**layers, **{f"GeluAndMul {how}": GeluAndMul(how) for how in ("tanh", "none")}}


def test_layers(scheduler: Any) -> None:
    for name, layer in layers_of(scheduler).items():
        given = arguments(layer)
        before = [one.cpu() for one in (*given, *layer.parameters(), *layer.buffers())]
        with torch.no_grad():
            mine, count = work_of(lambda layer=layer, given=given: layer(*given))
            theirs, many = work_of(lambda layer=layer, given=given: layer.forward_native(*given))
        assert count == 1 < many, name
        for one, other in zip(cpu(mine), cpu(theirs), strict=True):
            assert torch.equal(one, other), name
        after = [one.cpu() for one in (*given, *layer.parameters(), *layer.buffers())]
        assert all(map(torch.equal, before, after)), f"{name}.forward_native changes a tensor"


@pytest.mark.pprank(sanitize="none")
def test_input_of_a_layer_must_be_ordered_before_it(scheduler: Any) -> None:
    from pytest_pprank.devices.sim.reports import Kind, findings

    sim = torch.get_device_module("sim")
    for name, layer in layers_of(scheduler).items():
        given = arguments(layer)
        sim.synchronize()
        findings()
        with sim.stream(sim.Stream()):
            given[-1].add_(1)
        with torch.no_grad():
            layer(*given)
        (found,) = findings()
        kernel = name.split()[0]
        assert found.kind is Kind.UNORDERED, name
        assert found.second.what.startswith(f"{kernel} reads bfloat16[3, "), found
        places = [place[2] for place in found.second.frames]
        assert "test_input_of_a_layer_must_be_ordered_before_it" in places[:3], found


def attention(backend: Any, name: str, device: str) -> torch.Tensor:
    """Run two requests with 2 and 1 cached tokens, and 3 and 1 new ones (or 1 each)."""
    extend = name == "_run_sdpa_forward_extend"
    new = [3, 1] if extend else [1, 1]
    torch.manual_seed(1)
    query, keys, values = torch.rand(sum(new), 2, 8), torch.rand(16, 2, 8), torch.rand(16, 2, 8)
    table = torch.full((4, 12), 1 << 20)
    table[3, :5], table[1, :2] = torch.tensor([7, 2, 9, 4, 1]), torch.tensor([15, 0])
    slots, lengths = torch.tensor([3, 1]), torch.tensor([2 + new[0], 1 + new[1]])
    extends = [lengths - torch.tensor(new), torch.tensor(new)] if extend else []
    on_device = [query, torch.zeros_like(query), keys, values, table, slots, lengths, *extends]
    given = [one.to(device) for one in on_device]
    return getattr(backend, name)(*given, None, scaling=0.5, causal=extend).cpu()


@pytest.mark.parametrize("name", ["_run_sdpa_forward_extend", "_run_sdpa_forward_decode"])
def test_attention(scheduler: Any, name: str) -> None:
    backend = scheduler.tp_worker.model_runner.attn_backend
    mine, count = work_of(lambda: attention(backend, name, "sim"))
    theirs = attention(backend, name, "cpu")
    assert theirs.any()
    assert torch.equal(mine, theirs)
    native = super(type(backend), backend)
    _, many = work_of(lambda: attention(native, name, "sim"))
    assert many - count > 10
