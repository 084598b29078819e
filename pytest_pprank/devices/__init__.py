"""Kinds of device a rank can run on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_pprank.devices import sim
from pytest_pprank.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """A GPU we may use: `key` names it on this box (its UUID where the driver tells), `word` is
    what CUDA_VISIBLE_DEVICES calls it in this process.
    """

    key: str
    word: str


def visible_gpus(
    environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> tuple[Gpu, ...]:
    """List NVIDIA GPUs without touching one: the driver's list within CUDA_VISIBLE_DEVICES.

    Numbers are taken to follow the PCI bus, as CUDA counts where all GPUs are alike or
    CUDA_DEVICE_ORDER=PCI_BUS_ID is set.
    """
    present = _present_gpus(root)
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(Gpu(key, str(number)) for number, key in enumerate(present))
    found: list[Gpu] = []
    for word in chosen.split(","):
        gpu = _named_gpu(word.strip(), present)
        if gpu is None:
            break  # as CUDA does: the first invalid one ends the list
        if gpu.key in (other.key for other in found):
            return ()  # as CUDA does
        found.append(gpu)
        if gpu.word.startswith("MIG-"):
            break  # CUDA shows a process only one instance
    return tuple(found[: len(present)])


def _present_gpus(root: Path) -> list[str]:
    """Return the keys of the GPUs this container has, in the order of the PCI bus."""
    nodes = sorted(int(p.name[6:]) for p in (root / "dev").glob("nvidia[0-9]*") if _is_node(p))
    listed = root / "proc/driver/nvidia/gpus"
    if not listed.is_dir():
        return [f"gpu{node}" for node in nodes]
    keys = []
    for folder in sorted(listed.iterdir()):
        facts = _driver_facts(folder / "information")
        minor = facts.get("Device Minor", "")
        if nodes and minor.isdigit() and int(minor) not in nodes:
            continue  # the driver lists the whole box, also where a container got a part of it
        uuid = facts.get("GPU UUID", "")
        keys.append(uuid if re.fullmatch(r"GPU-[\w-]+", uuid) else f"gpu-{_safe(folder.name)}")
    return keys


def _is_node(path: Path) -> bool:
    return path.name[6:].isdigit()


def _driver_facts(information: Path) -> dict[str, str]:
    try:
        lines = information.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    parted = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in parted}


def _named_gpu(word: str, present: Sequence[str]) -> Gpu | None:
    if word.isdigit():
        return Gpu(present[int(word)], word) if int(word) < len(present) else None
    if word.startswith("MIG-"):
        return Gpu(_safe(word), word)
    if not word.startswith("GPU-"):
        return None
    if not any(key.startswith("GPU-") for key in present):
        return Gpu(_safe(word), word)  # the driver does not say which it is
    matching = [key for key in present if key.lower().startswith(word.lower())]
    return Gpu(matching[0], word) if len(matching) == 1 else None


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)  # it becomes the name of a file


def gpu_environment(gpus: Sequence[Gpu]) -> dict[str, str]:
    """Return what shows a process these GPUs alone, in this order, if set before CUDA starts.

    SGLang reads the numbers, so UUIDs are passed on only where the user has given them.
    """
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(gpu.word for gpu in gpus)}
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        shown["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the numbers are ours
    return shown


def device_environment(device: str) -> dict[str, str]:
    """Return what ranks on this kind of device must have in their environment from the start.

    On cpu and sim the GPUs are hidden: SGLang 0.5.17 sets a CUDA device where it sees one. On cuda
    torch is kept from starting CUDA just to see whether there is any: in the fork server that would
    fix the visible devices, and spoil the fork.
    """
    if device in ("cpu", "sim"):
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if device == "cuda" else {}


def choose_device(wanted: str, ranks: int, *, sglang: bool = False) -> str:
    """Turn ``auto`` into a kind of device for `ranks` ranks, with or without SGLang on them: cuda,
    else what shows most of a program's mistakes. Raises UsageError for too few GPUs.
    """
    gpus = len(visible_gpus()) if wanted in ("auto", "cuda") else 0
    if wanted == "auto":
        if gpus >= ranks:
            return "cuda"
        return sim.NAME if sglang and sim.is_known_good() else "cpu"
    if wanted == "cuda" and gpus < ranks:
        raise UsageError(
            f"device cuda: {ranks} stages need {ranks} GPUs, {gpus} visible here (the driver's "
            "list within CUDA_VISIBLE_DEVICES); use --pprank-device cpu or fewer stages"
        )
    return wanted
