"""The kinds of device that a rank can run on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_pprank.devices import sim
from pytest_pprank.devices.cuda import environment
from pytest_pprank.errors import TooFewGpus

NO_GPU = "9999"
"""A value of CUDA_VISIBLE_DEVICES that hides all GPUs: a number that none has.

An empty one hides them, too, but sglang.test.test_utils reads its first character as a number.
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use.

    `key`: its unique name on this machine (its UUID if the driver reports one). `word`: its name in
    CUDA_VISIBLE_DEVICES in this process.
    """

    key: str
    word: str


def visible_gpus(
    environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> tuple[Gpu, ...]:
    """List NVIDIA GPUs without touching one: the driver's list within CUDA_VISIBLE_DEVICES.

    Numbers are assumed to follow the PCI bus. CUDA numbers GPUs so if all are of the same model, or
    if CUDA_DEVICE_ORDER=PCI_BUS_ID is set.
    """
    present = _present_gpus(root)
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(Gpu(key, str(number)) for number, key in enumerate(present))
    found: list[Gpu] = []
    for word in chosen.split(","):
        gpu = _named_gpu(word.strip(), present)
        if gpu is None:
            break  # as in CUDA: the first invalid entry ends the list
        if gpu.key in (other.key for other in found):
            return ()  # as in CUDA: a duplicate hides all GPUs
        found.append(gpu)
        if gpu.word.startswith("MIG-"):
            break  # CUDA shows a process only one MIG instance
    return tuple(found[: len(present)])


def _present_gpus(root: Path) -> list[str]:
    """Return the keys of the GPUs in this container, in the order of the PCI bus."""
    nodes = sorted(int(p.name[6:]) for p in (root / "dev").glob("nvidia[0-9]*") if _is_node(p))
    listed = root / "proc/driver/nvidia/gpus"
    if not listed.is_dir():
        return [f"gpu{node}" for node in nodes]
    keys = []
    for folder in sorted(listed.iterdir()):
        facts = _driver_facts(folder / "information")
        minor = facts.get("Device Minor", "")
        if nodes and minor.isdigit() and int(minor) not in nodes:
            continue  # the driver lists all GPUs of the machine, also those not in this container
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
        return Gpu(_safe(word), word)  # the driver does not report UUIDs
    matching = [key for key in present if key.lower().startswith(word.lower())]
    return Gpu(matching[0], word) if len(matching) == 1 else None


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)  # it becomes a file name


def gpu_environment(gpus: Sequence[Gpu]) -> dict[str, str]:
    """Return environment variables that restrict a process to these GPUs, in this order.

    They must be set before CUDA starts. SGLang reads the numbers, so UUIDs are used only if the
    user has given them.
    """
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(gpu.word for gpu in gpus)}
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        shown["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the numbering of visible_gpus
    return shown


def device_environment(device: str) -> dict[str, str]:
    """Return the environment variables that ranks on this kind of device need from the start.

    On cpu and sim the GPUs are hidden: SGLang 0.5.17 sets a CUDA device if it sees one. On cuda see
    `devices.cuda.environment`.
    """
    if device in ("cpu", "sim"):
        return {"CUDA_VISIBLE_DEVICES": NO_GPU, **environment.UNSTARTED}
    return environment.of_ranks(os.environ) if device == "cuda" else {}


def choose_device(wanted: str, ranks: int, *, sglang: bool = False, roles: bool = False) -> str:
    """Return the kind of device for ranks that need `ranks` GPUs; only ``auto`` leaves a choice.

    ``auto`` is cuda if there are enough GPUs, else the device that finds the most errors in a
    program. `sglang`: whether the ranks run SGLang. `roles`: whether they are prefill and decode.
    Raises TooFewGpus.
    """
    gpus = len(visible_gpus()) if wanted in ("auto", "cuda") else 0
    if wanted == "auto":
        if gpus >= ranks:
            return "cuda"
        return sim.NAME if sglang and sim.is_known_good() else "cpu"
    if wanted == "cuda" and gpus < ranks:
        raise TooFewGpus(
            f"device cuda: {ranks} stages need {ranks} GPUs, {gpus} visible here (the driver's "
            "list within CUDA_VISIBLE_DEVICES); use --pprank-device cpu or fewer stages"
            + (", or let prefill and decode share GPUs: --pprank-oversubscribe" if roles else ""),
            gpus,
        )
    return wanted


def gpus_of_group(device: str, ranks: int) -> int:
    """Return how many GPUs a group of `ranks` ranks gets: one each if there are enough."""
    return min(len(visible_gpus()), ranks) if device == "cuda" else 0
