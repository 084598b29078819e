"""Kinds of device a rank can run on."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from pytest_pprank.errors import UsageError


def visible_gpus() -> int:
    """Count NVIDIA GPUs without touching one: the driver's list within CUDA_VISIBLE_DEVICES."""
    listed = Path("/proc/driver/nvidia/gpus")
    nodes = [p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()]
    present = len(list(listed.iterdir())) if listed.is_dir() else len(nodes)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return present
    named = itertools.takewhile(lambda word: word and not word.startswith("-"), chosen.split(","))
    return min(present, len(list(named)))  # as CUDA does: the first invalid one ends the list


def device_environment(device: str) -> dict[str, str]:
    """Return what ranks on this kind of device must have in their environment from the start.

    On cpu the GPUs are hidden: SGLang 0.5.17 sets a CUDA device where it sees one.
    """
    return {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}


def choose_device(wanted: str, ranks: int) -> str:
    """Turn ``auto`` into a kind of device for `ranks` ranks; raises UsageError for too few GPUs."""
    gpus = visible_gpus() if wanted != "cpu" else 0
    if wanted == "auto":
        return "cuda" if gpus >= ranks else "cpu"
    if wanted == "cuda" and gpus < ranks:
        raise UsageError(
            f"device cuda: {ranks} stages need {ranks} GPUs, {gpus} visible here (the driver's "
            "list within CUDA_VISIBLE_DEVICES); use --pprank-device cpu or fewer stages"
        )
    return wanted
