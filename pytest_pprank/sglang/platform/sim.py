"""The platform class of the simulated device; only SGLang imports this module."""

from __future__ import annotations

import torch

from pytest_pprank.sglang.platform import sim_kernels
from pytest_pprank.sglang.platform.cpu import PprankCpuPlatform


class PprankSimPlatform(PprankCpuPlatform):
    """A device with pinned memory and streams of its own; kernels are torch's, as on the CPU."""

    device_name = "pprank-sim"
    device_type = "sim"

    def is_pin_memory_available(self, device: torch.device = None) -> bool:
        return device is None or str(device).startswith("sim")

    def get_dispatch_key_name(self) -> str:
        return sim_kernels.dispatch_key(super().get_dispatch_key_name())

    def init_backend(self) -> None:
        sim_kernels.register()

    def get_device(self, device_id: int | None = 0) -> str:
        return "sim" if device_id is None else f"sim:{device_id}"

    def synchronize(self) -> None:
        torch.get_device_module("sim").synchronize()
