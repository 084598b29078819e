"""Memory, operators and the module of the simulated device."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pytest_pprank.devices.sim import memory, private_api
from pytest_pprank.devices.sim.settings import changed
from pytest_pprank.errors import PprankError

SIM = torch.get_device_module


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="sim")


def same(make: Any) -> None:
    """Compare an operation on the device with the same on the CPU, bit by bit."""
    on_cpu, on_sim = make("cpu"), make("sim")
    assert on_sim.device.type == "sim"
    torch.testing.assert_close(on_sim.cpu(), on_cpu, rtol=0, atol=0, equal_nan=True)


def values(device: str) -> torch.Tensor:
    return torch.arange(12.0, device=device).view(3, 4) / 7


def test_torch_has_everything_private_that_the_device_stands_on() -> None:
    """Names the private functions that a new torch has moved, before other tests fail for that."""
    assert private_api.moved() == []


def test_what_moved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(private_api.USED, "_C._no_such_thing", "a test")
    with pytest.raises(PprankError, match=r"torch\._C\._no_such_thing \(a test\)"):
        private_api.check()


@pytest.mark.parametrize(
    "make",
    [
        lambda d: values(d) @ values(d).t(),
        lambda d: values(d).softmax(-1),
        lambda d: torch.cat(values(d).split(1)).add_(1),
        lambda d: values(d).topk(2)[1],
        lambda d: F.embedding(torch.tensor([1, 2], device=d), values(d)),
        lambda d: F.linear(values(d).view(3, 2, 2), values(d)[:, :2], values(d)[:, 0]),
        lambda d: F.scaled_dot_product_attention(*[values(d).view(1, 1, 3, 4)] * 3),
        lambda d: torch.mm(values(d), values(d).t(), out=torch.empty(0, device=d)),
        lambda d: torch.where(values(d) > 0.5, values(d), torch.zeros((), device=d)),
        lambda d: (values(d) > 0.5).nonzero(),
        lambda d: values(d)[torch.tensor([2, 0])],
        lambda d: values(d).bfloat16() @ values(d).bfloat16().t(),
        lambda d: values(d).to(torch.float8_e4m3fn).float(),
        lambda d: torch.view_as_complex(values(d).view(6, 2)).abs(),
        lambda d: torch._foreach_add([values(d), values(d)], 1.0)[1],
        lambda d: values(d) + torch.tensor(1.0),
        lambda d: (torch.arange(5, device=d) % 3) * 0.5,
        lambda d: values(d).t()[1:].contiguous().view(torch.int32),
        lambda d: torch.zeros(4, device=d).index_put_((torch.tensor([1, 1], device=d),),
                                                      torch.tensor(5.0, device=d), True),
    ],
)  # fmt: skip
def test_operators_compute_what_the_cpu_computes(make: Any) -> None:
    same(make)
    with torch.inference_mode():
        same(make)


def test_views_share_memory_also_through_in_place_operators() -> None:
    x = values("sim").clone()
    y = x[1]
    y[:] = 7
    x[:, 0].add_(1)
    x.t()[2:].zero_()
    assert x.tolist()[1] == [8, 7, 0, 0]
    assert y.untyped_storage()._cdata == x.untyped_storage()._cdata
    assert y._base is x


def test_metadata_changed_in_place_is_seen() -> None:
    x = values("sim").clone()
    x.t_()
    assert (x + 0).shape == (4, 3)
    x.unsqueeze_(0)
    assert torch.equal((x * 1).cpu()[0], values("cpu").t())
    parameter = torch.nn.Parameter(ones(2))
    parameter.data = ones(3) * 4
    assert (parameter + 0).tolist() == [4, 4, 4]


def test_training_works() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 5)
    moved = copy.deepcopy(layer).to("sim")
    for one, device in ((layer, "cpu"), (moved, "sim")):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        one(values(device)).square().mean().backward()
        optimizer.step()
    assert moved.weight.grad is not None
    assert torch.equal(moved.weight.cpu(), layer.weight)


def test_seeds_give_the_numbers_of_the_cpu() -> None:
    def drawn(device: str) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(3)
        return torch.rand(5, device=device, generator=generator)

    same(drawn)


def test_host_tensors_beside_device_tensors_are_refused_as_on_cuda() -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        ones(3) + torch.ones(3)
    with pytest.raises(RuntimeError, match=r"argument indices \(2,\) torch.int64"):
        F.embedding(torch.tensor([1, 2]), ones(3, 2))
    with pytest.raises(TypeError, match=r"Tensor\.cpu\(\)"):
        ones(3).numpy()


def test_save_and_load() -> None:
    file = io.BytesIO()
    torch.save(values("sim"), file)
    file.seek(0)
    assert torch.equal(torch.load(file).cpu(), values("cpu"))


def test_pickle() -> None:
    """As SGLang sends tensors in lists to the next stage; also after copies that still run."""
    for size in (1, 7, 64, 7, 1):
        tensor = torch.arange(size).pin_memory().to("sim", non_blocking=True)
        again = pickle.loads(pickle.dumps([tensor, tensor[: size // 2]]))
        assert [part.device.type for part in again] == ["sim", "sim"]
        assert [part.tolist() for part in again] == [[*range(size)], [*range(size // 2)]]


def test_pinned_memory() -> None:
    assert torch.tensor([1, 2], pin_memory=True).is_pinned()
    assert torch.empty(3, pin_memory=True)[1:].is_pinned()
    assert torch.ones(2).pin_memory().tolist() == [1, 1]
    assert not torch.ones(2).is_pinned()
    assert ones(2).to("cpu", non_blocking=True).is_pinned()


def test_several_devices() -> None:
    sim = SIM("sim")
    first, second = ones(2), torch.ones(2, device="sim:1")
    assert (second * 2).device == torch.device("sim:1")
    assert sim.Stream(1).device_index == sim.current_stream("sim:1").device_index == 1
    with pytest.raises(RuntimeError, match="the current device is always sim:0"):
        sim.set_device(1)
    assert second.to("sim:0").add_(first).tolist() == [2, 2]
    assert sim.memory_allocated(1) >= 512
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.empty(1, device="sim:99")


def test_memory_is_counted_and_limited() -> None:
    sim = SIM("sim")
    before = sim.memory_allocated()
    big = torch.empty(1000, device="sim")
    assert sim.memory_allocated() - before == 4096
    view = big[5:]
    del big
    assert sim.memory_allocated() - before == 4096
    del view
    assert sim.memory_allocated() == before
    assert sim.max_memory_allocated() >= before + 4096
    with changed(memory_limit=before + 8192):
        assert sim.get_device_properties().total_memory == before + 8192
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 1\.00 MiB"):
            torch.empty(1 << 18, device="sim")
        assert torch.ones(1000, device="sim").sum().item() == 1000
    assert sim.memory_stats()["num_ooms"] >= 1


def test_memory_is_given_back() -> None:
    known = len(memory.blocks)
    for _ in range(50):
        (ones(10) + 1).view(5, 2).t().sum()
    memory.collect()
    assert len(memory.blocks) == known


def test_the_controller_side_imports_no_torch() -> None:
    code = "import sys, pytest_pprank.devices.sim; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
