"""Checks of the kinds of device, and of Mooncake, which moves KV between prefill and decode."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pytest_pprank.devices import sim as sim_device
from pytest_pprank.devices import visible_gpus
from pytest_pprank.doctor.child import ChildFailed, ask
from pytest_pprank.doctor.result import Result, Use, limited, ok
from pytest_pprank.doctor.software import FRESH, SETUP
from pytest_pprank.launch.leases import cpu_slots
from pytest_pprank.sglang.platform import mooncake as transfer
from pytest_pprank.sglang.static.installed import installed

_SIM = (
    "from pytest_pprank.devices.sim.module import install; install(); import torch; "
    f"print(torch.ones(2, device={sim_device.NAME!r}).sum().item())"
)
_CUDA = (
    "import torch; assert torch.version.cuda, 'this torch is not a CUDA build'; "
    "print(torch.zeros(1, device='cuda').device, torch.cuda.get_device_name(), sep='|')"
)
_DRIVER = Path("/proc/driver/nvidia/version")
_STAGES = 2
"""The fewest stages that make a pipeline."""


def cpu() -> Result:
    """Count the cores, and the ranks that may run on them at the same time."""
    return ok(f"{len(os.sched_getaffinity(0))} cores; up to {len(cpu_slots())} ranks at a time")


def sim() -> Result:
    """Register the simulated device in a child process, and compute on it."""
    try:
        ask(_SIM, sim_device.NAME)
    except ChildFailed as error:
        return limited(f"cannot be installed with this torch: {error}", stops=(Use.SIM,))
    return ok("the simulated device can be installed with this torch")


def cuda() -> Result:
    """Look at the GPUs and their driver, and use one in a child process."""
    gpus = visible_gpus()
    if not gpus:
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ and visible_gpus({})
        cure = "unset CUDA_VISIBLE_DEVICES" if hidden else ""
        return limited("no NVIDIA GPU is visible", cure, stops=(Use.CUDA,))
    seen = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}, driver {_driver()}"
    try:
        _, name = ask(_CUDA, "cuda").split("|")
    except ChildFailed as error:
        cure = f"{SETUP} --cuda{FRESH}"
        return limited(f"{seen}, and torch cannot use one: {error}", cure, stops=(Use.CUDA,))
    if len(gpus) < _STAGES:
        return limited(f"{seen} ({name}); {_STAGES} stages need {_STAGES}", stops=(Use.CUDA,))
    return ok(f"{seen} ({name})")


def _driver() -> str:
    try:
        found = re.search(r"\s(\d+\.[\d.]+)\s", _DRIVER.read_text())
    except OSError:
        found = None
    return found.group(1) if found else "of unknown version"


def mooncake() -> Result:
    """Load Mooncake in a child process."""
    if installed() is None:
        return limited("not looked for: there is no SGLang", stops=(Use.DISAGG,))
    reason = transfer.why_not() if transfer.installed() else "it is not installed"
    if not reason:
        return ok("loads")
    what, command, as_root = transfer.diagnosis(reason)
    return limited(what, f"{command}{'  # as root' * as_root}", stops=(Use.DISAGG,))
