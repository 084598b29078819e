"""Which GPUs a run may use, on machines that are simulated by folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

import pytest

from pytest_pprank import devices
from pytest_pprank.devices import device_environment, gpu_environment, sim, visible_gpus
from pytest_pprank.errors import UsageError

Box = Callable[..., Path]

UUIDS = [f"GPU-{digit}aaa1111-2222-3333-4444-555566667777" for digit in "0123"]
SECOND_A = "GPU-0bbb1111-2222-3333-4444-555566667777"


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """Create a machine with GPUs in bus order; device nodes may be fewer, as in a container."""

    def make(uuids: Sequence[str], nodes: Iterable[int] | None = None, listed: bool = True) -> Path:
        (tmp_path / "dev").mkdir()
        for name in ("nvidiactl", "nvidia-uvm", "nvidia-caps"):
            (tmp_path / "dev" / name).touch()
        for minor in range(len(uuids)) if nodes is None else nodes:
            (tmp_path / "dev" / f"nvidia{minor}").touch()
        for minor, uuid in enumerate(uuids if listed else ()):
            folder = tmp_path / f"proc/driver/nvidia/gpus/0000:{minor + 0x17:02x}:00.0"
            folder.mkdir(parents=True)
            (folder / "information").write_text(
                f"Model: \t\t NVIDIA H200\nIRQ:   \t\t 12\nGPU UUID: \t {uuid}\n"
                f"Bus Location: \t 0000:{minor + 0x17:02x}:00.0\nDevice Minor: \t {minor}\n"
            )
        return tmp_path

    return make


def keys(root: Path, chosen: str | None = None) -> list[str]:
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    return [gpu.key for gpu in visible_gpus(environment, root)]


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("2", [2]),
        (" 3 , 1 ", [3, 1]),
        ("0,9,1", [0]),  # the first invalid one ends the list
        ("0,-1,1", [0]),
        ("0,banana", [0]),
        ("1,1", []),
        (f"1,{UUIDS[1]}", []),
        (UUIDS[2], [2]),
        (f"{UUIDS[3]},{UUIDS[0]}", [3, 0]),
        ("GPU-2,GPU-0", [2, 0]),  # a prefix is enough
        ("gpu-2", []),
        ("GPU-", []),  # matches more than one
        ("GPU-f", []),
    ],
)
def test_within_cuda_visible_devices(box: Box, chosen: str | None, numbers: list[int]) -> None:
    assert keys(box(UUIDS), chosen) == [UUIDS[number] for number in numbers]


def test_the_words_of_the_user_are_passed_on(box: Box) -> None:
    gpus = visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-2,3"}, box(UUIDS))
    assert [gpu.word for gpu in gpus] == ["GPU-2", "3"]


def test_a_prefix_of_two_is_none(box: Box) -> None:
    root = box([UUIDS[0], SECOND_A])
    assert keys(root, "GPU-0") == []
    assert keys(root, "GPU-0b") == [SECOND_A]


def test_mig_instances(box: Box) -> None:
    root = box(UUIDS)
    assert keys(root, "MIG-ab-cd,MIG-ef") == ["MIG-ab-cd"]  # CUDA ignores further ones
    (gpu,) = visible_gpus({"CUDA_VISIBLE_DEVICES": f"MIG-{UUIDS[0]}/1/0"}, root)
    assert gpu.word == f"MIG-{UUIDS[0]}/1/0"
    assert "/" not in gpu.key


def test_a_container_with_a_part_of_the_box(box: Box) -> None:
    assert keys(box(UUIDS, nodes=[1, 3])) == [UUIDS[1], UUIDS[3]]


def test_without_the_drivers_list(box: Box) -> None:
    root = box(UUIDS, listed=False, nodes=[0, 10, 2])
    assert keys(root) == ["gpu0", "gpu2", "gpu10"]
    assert keys(root, "2,0") == ["gpu10", "gpu0"]
    assert keys(root, UUIDS[1]) == [UUIDS[1]]


def test_a_box_without_gpus(box: Box) -> None:
    root = box([])
    assert keys(root) == keys(root, "0") == keys(root, UUIDS[0]) == []


def test_a_uuid_that_is_none_does_not_become_a_path(box: Box) -> None:
    assert keys(box(["GPU-../../etc", "GPU-????????-????"])) == [
        "gpu-0000-17-00.0",
        "gpu-0000-18-00.0",
    ]


def test_what_the_ranks_are_shown(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    root = box(UUIDS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    leased = visible_gpus(root=root)[1:3]
    # numbers that we chose, so CUDA must count in the same order
    assert gpu_environment(leased) == {
        "CUDA_VISIBLE_DEVICES": "1,2",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    assert gpu_environment(visible_gpus(root=root)) == {"CUDA_VISIBLE_DEVICES": "3,2"}


def test_the_kind_of_device_is_chosen_by_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (devices.Gpu("GPU-1", "0"), devices.Gpu("GPU-2", "1"))
    monkeypatch.setattr(devices, "visible_gpus", lambda: gpus)
    assert devices.choose_device("auto", 2) == "cuda"
    assert devices.choose_device("auto", 2, sglang=True) == "cuda"
    assert devices.choose_device("auto", 3) == "cpu"
    with pytest.raises(UsageError, match="3 stages need 3 GPUs, 2 visible here"):
        devices.choose_device("cuda", 3)
    with pytest.raises(UsageError, match="prefill and decode share GPUs: --pprank-oversubscribe"):
        devices.choose_device("cuda", 3, roles=True)
    assert [devices.gpus_of_group("cuda", ranks) for ranks in (1, 2, 3)] == [1, 2, 2]
    assert devices.gpus_of_group("cpu", 2) == 0


@pytest.mark.parametrize(
    ("torch", "device"),
    [
        ("2.11.0+cu130", "sim"),
        ("2.13.0", "sim"),
        ("3.0.1", "sim"),
        ("2.10.1", "cpu"),
        (None, "cpu"),
    ],
)
def test_sglang_without_gpus_is_on_what_shows_most(
    monkeypatch: pytest.MonkeyPatch, torch: str | None, device: str
) -> None:
    def version(name: str) -> str | None:
        if torch is None:
            raise metadata.PackageNotFoundError(name)
        return torch

    monkeypatch.setattr(devices, "visible_gpus", lambda: ())
    monkeypatch.setattr(metadata, "version", version)
    is_known_good = sim.is_known_good.__wrapped__  # without this process's cache
    monkeypatch.setattr(sim, "is_known_good", is_known_good)
    assert devices.choose_device("auto", 2, sglang=True) == device
    assert devices.choose_device("auto", 2) == "cpu"


def test_nothing_starts_cuda_before_the_ranks_do(box: Box) -> None:
    assert visible_gpus(device_environment("cpu"), box(UUIDS)) == ()
    assert device_environment("cpu")["CUDA_VISIBLE_DEVICES"].isdigit()  # SGLang's tests want that


def test_compiled_kernels_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not in the folder of a worker group; the user's own variables stay."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/of/the/user")
    found = device_environment("cuda")
    assert found["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "pytest-pprank" / "inductor")
    assert "TRITON_CACHE_DIR" not in found
    assert found["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
