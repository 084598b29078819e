"""Collectives that SGLang has registered as operators for CUDA, for devices sim and cpu.

SGLang hides some collectives of its process groups in operators of its own, which a compiler does
not look into (parallel_state, register_custom_op); on device cpu it calls some directly.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from pytest_pprank.sglang.compat.seams import need

_KEYS = {"sim": "PrivateUse1", "cpu": "CPU"}
_METHODS = {
    "inplace_all_reduce": "_all_reduce_in_place",
    "outplace_all_reduce": "_all_reduce_out_place",
    "reg_all_gather_into_tensor": "_all_gather_into_tensor",
    "reg_reduce_scatter_tensor": "_reduce_scatter_tensor",
    "reg_all_to_all_single": "_all_to_all_single",
}
"""The method of SGLang's GroupCoordinator that each operator calls."""
_libraries: list[torch.library.Library] = []
"""An operator lives as long as its library."""


def register(device: str) -> None:
    """Register those operators that the installed SGLang has, once in this process.

    `device`: such as ``cpu`` or ``sim:1``.
    """
    key = _KEYS.get(device.partition(":")[0])
    if _libraries or key is None:
        return
    import_module("sglang.srt.distributed.parallel_state")
    library = torch.library.Library("sglang", "IMPL")
    _libraries.append(library)
    known = frozenset(torch._C._dispatch_get_all_op_names())
    for name, method in _METHODS.items():
        full = f"sglang::{name}"
        if full in known and not torch._C._dispatch_has_kernel_for_dispatch_key(full, key):
            returns = getattr(torch.ops.sglang, name).default._schema.returns
            library.impl(name, _kernel(method, returns=bool(returns)), key)


def _kernel(method: str, *, returns: bool) -> Callable[..., object]:
    def kernel(*args: object) -> object:
        at = next(index for index, value in enumerate(args) if isinstance(value, str))
        groups = need(import_module("sglang.srt.distributed.parallel_state"), "_groups")
        group = groups[args[at]]()
        result = need(group, method)(*args[:at], *args[at + 1 :])
        return result if returns else None

    return kernel
