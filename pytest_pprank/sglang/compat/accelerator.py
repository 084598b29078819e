"""Makes SGLang code that names ``torch.cuda`` work on devices cpu and sim.

``_send_kv_chunk`` (disaggregation/prefill.py, from 0.5.22) copies page indices to pinned memory,
records a ``torch.cuda.Event`` after the copy, and lets the sending thread wait for the event. The
overlap schedule's early send (from 0.5.17) does the same with KV. On device sim these modules get a
``torch`` whose ``cuda`` is the simulated device, so that copy and event are checked as on a GPU. On
cpu they get ``torch.cpu``, whose streams and events do nothing. As cpu has no pinned memory, SGLang
is told that its sender does not support host tensors of indices.

``async_d2h``, which copies results to the host, handles only CUDA up to 0.5.22: pinned memory, a
copy that nothing waits for, ``record_stream``. On sim it is changed to test for tensors of sim.

The fence between what a forward reads and what the overlap schedule writes next
(``_war_barrier_enabled``) is for CUDA only in 0.5.13; later releases have a switch for other
devices (see `sglang.platform.activate_sim`).
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

_CUDA_BY_NAME = ("sglang.srt.disaggregation.prefill",)
_DOWNLOADS = (
    ("sglang.srt.managers.utils", "_async_d2h"),  # 0.5.15 to 0.5.20
    ("sglang.srt.utils.common", "async_d2h"),
)
_ON_SIM = {"is_cuda": "is_sim", "cuda": "sim"}
_SCHEDULER = "sglang.srt.managers.scheduler"
_SWITCH_OF_FENCE = "SGLANG_ENABLE_WAR_BARRIER"
_SENDER = ("sglang.srt.disaggregation.mooncake.conn", "MooncakeKVSender")
_HOST_INDICES = "supports_host_tensor_indices"


class _TorchFor(ModuleType):
    """The module torch, but with another device's module as ``torch.cuda``."""

    def __init__(self, torch: ModuleType, device: Any) -> None:
        super().__init__("torch")
        self._torch = torch
        self.cuda = SimpleNamespace(
            Event=device.Event, Stream=device.Stream, current_stream=device.current_stream
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def use_accelerator(kind: str) -> None:
    """Make the imported modules of SGLang that name ``torch.cuda`` work on ``cpu`` or ``sim``."""
    if kind not in ("cpu", "sim"):
        return
    import torch

    device = torch.cpu if kind == "cpu" else torch.get_device_module("sim")
    if kind == "sim":
        _fence_overlap()
    for name in _CUDA_BY_NAME:
        module = sys.modules.get(name)
        if module is not None and not isinstance(module.torch, _TorchFor):
            module.torch = _TorchFor(torch, device)  # type: ignore[attr-defined]
    sender = getattr(sys.modules.get(_SENDER[0]), _SENDER[1], None)
    if kind == "cpu" and getattr(sender, _HOST_INDICES, False):
        setattr(sender, _HOST_INDICES, False)


def _fence_overlap() -> None:
    """Make a Scheduler without a switch for its fence set the fence as on CUDA."""
    module = sys.modules.get(_SCHEDULER)
    loop = getattr(getattr(module, "Scheduler", None), "run_event_loop", None)
    names = () if loop is None else inspect.unwrap(loop).__code__.co_names
    if module is not None and "is_cuda" in names and _SWITCH_OF_FENCE not in names:
        # is_cuda has no other use at run time: other checks of the device ran at import
        module.is_cuda = lambda: True  # type: ignore[attr-defined]


def let_downloads_use_sim(kind: str) -> None:
    """On device sim, make SGLang's functions that copy results to the host accept its tensors.

    Call after reverts, which compare running code with SGLang's files. This changes the names in
    the code object itself, because other modules have imported the functions by name.
    """
    for module, function in _DOWNLOADS if kind == "sim" else ():
        download = getattr(sys.modules.get(module), function, None)
        if download is not None:
            code = download.__code__
            names = tuple(_ON_SIM.get(name, name) for name in code.co_names)
            download.__code__ = code.replace(co_names=names)
