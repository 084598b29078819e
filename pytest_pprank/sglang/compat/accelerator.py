"""Where SGLang names ``torch.cuda`` although another accelerator is meant.

``_send_kv_chunk`` (disaggregation/prefill.py, from 0.5.22) copies page indices to pinned memory,
records a ``torch.cuda.Event`` behind the copy and lets the thread that sends wait for it; the
overlap schedule's early send (from 0.5.17) does the same with KV. On device sim these modules get a
``torch`` whose ``cuda`` is the simulated device, so that copy and event are checked as on a GPU. On
cpu it is ``torch.cpu``, whose streams and events do nothing; for its want of pinned memory,
SGLang's own switch for senders that cannot do so is used.

``async_d2h``, by which results come to the host, is up to 0.5.22 for CUDA alone: pinned memory,
a copy that nothing waits for, ``record_stream``. On sim it asks for a tensor of sim instead.

The fence between what a forward reads and what the overlap schedule writes next
(``_war_barrier_enabled``) is for CUDA alone in 0.5.13; later there is a switch for other devices
(see `sglang.platform.activate_sim`).
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
    """torch, with another device's module in the place of ``torch.cuda``."""

    def __init__(self, torch: ModuleType, device: Any) -> None:
        super().__init__("torch")
        self._torch = torch
        self.cuda = SimpleNamespace(
            Event=device.Event, Stream=device.Stream, current_stream=device.current_stream
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def use_accelerator(kind: str) -> None:
    """Let the imported modules of SGLang that name ``torch.cuda`` work on ``cpu`` or ``sim``."""
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
    """Let a Scheduler that has no switch for its fence set it as on CUDA."""
    module = sys.modules.get(_SCHEDULER)
    loop = getattr(getattr(module, "Scheduler", None), "run_event_loop", None)
    names = () if loop is None else inspect.unwrap(loop).__code__.co_names
    if module is not None and "is_cuda" in names and _SWITCH_OF_FENCE not in names:
        # the module asks it for nothing else: what depends on the device was decided at its import
        module.is_cuda = lambda: True  # type: ignore[attr-defined]


def let_downloads_use_sim(kind: str) -> None:
    """On device sim, let SGLang's functions that copy results to the host know its tensors.

    Call after reverts, which compare what runs with SGLang's files. The names in the code itself
    are changed: modules have imported the functions by name, and all else stays as it is.
    """
    for module, function in _DOWNLOADS if kind == "sim" else ():
        download = getattr(sys.modules.get(module), function, None)
        if download is not None:
            code = download.__code__
            names = tuple(_ON_SIM.get(name, name) for name in code.co_names)
            download.__code__ = code.replace(co_names=names)
