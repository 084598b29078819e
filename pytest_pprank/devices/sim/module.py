"""``torch.get_device_module("sim")``: the counterpart of torch.cuda, as far as it applies."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pytest_pprank.devices.sim import NAME, allocator, memory, streams
from pytest_pprank.devices.sim.settings import settings
from pytest_pprank.devices.sim.streams import Event, Stream, StreamContext, device_index

_KEY = "PrivateUse1"
_libraries: list[torch.library.Library] = []


class device:
    """``with torch.sim.device(0)``; only device 0 can be current (see `streams.set_device`)."""

    def __init__(self, device: Any) -> None:
        self._wanted = None if device == -1 else device

    def __enter__(self) -> None:
        streams.set_device(self._wanted)

    def __exit__(self, *_: object) -> None:
        """Do nothing: the current device cannot have changed."""


class device_of(device):
    """``with torch.sim.device_of(tensor)``: makes a tensor's device the current one."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.get_device() if memory.is_sim(tensor) else -1)


@dataclass(frozen=True)
class Properties:
    """Properties of a device, as torch.cuda.get_device_properties returns them."""

    name: str = "pprank simulated device"
    total_memory: int = 0
    multi_processor_count: int = 1
    major: int = 0
    minor: int = 0
    is_integrated: bool = False


def get_device_properties(device: Any = None) -> Properties:
    """Return the properties of a device; raises RuntimeError for one that does not exist."""
    device_index(device)
    return Properties(total_memory=allocator.total_memory())


def empty_cache() -> None:
    """Release the allocator's cache; synchronizes first, as CUDA does."""
    streams.synchronize()
    memory.collect()
    allocator.empty_cache(streams.current_device())


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Return (free bytes, total bytes)."""
    memory.collect()
    total = allocator.total_memory()
    return max(total - allocator.stats_of(device).reserved, 0), total


def _counted(name: str) -> Callable[..., int]:
    def counted(device: Any = None) -> int:
        memory.collect()
        return int(getattr(allocator.stats_of(device), name))

    return counted


def _memory_stats(device: Any = None) -> dict[str, int]:
    memory.collect()
    return allocator.memory_stats(device)


_MEMBERS: dict[str, Any] = {
    "Stream": Stream,
    "Event": Event,
    "StreamContext": StreamContext,
    "device": device,
    "device_of": device_of,
    "_initialized": True,
    "is_initialized": lambda: True,
    "is_available": lambda: True,
    "_is_in_bad_fork": lambda: False,
    "init": lambda: None,
    "current_device": streams.current_device,
    "device_count": lambda: settings.devices,
    "set_device": streams.set_device,
    "current_stream": streams.current_stream,
    "default_stream": streams.default_stream,
    "set_stream": streams.set_stream,
    "stream": StreamContext,
    "synchronize": streams.synchronize,
    "is_current_stream_capturing": lambda: False,
    # the device uses the CPU's generator: the same seed gives the same numbers
    "manual_seed": torch.manual_seed,
    "manual_seed_all": lambda _seed: None,
    "seed_all": lambda: None,
    "get_rng_state": lambda _device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, _device=None: torch.set_rng_state(state),
    "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
    "empty_cache": empty_cache,
    "ipc_collect": lambda: None,
    "mem_get_info": mem_get_info,
    "memory_allocated": _counted("allocated"),
    "max_memory_allocated": _counted("peak_allocated"),
    "memory_reserved": _counted("reserved"),
    "max_memory_reserved": _counted("peak_reserved"),
    "memory_stats": _memory_stats,
    "reset_peak_memory_stats": allocator.reset_peaks,
    "get_device_properties": get_device_properties,
    "get_device_name": lambda device=None: get_device_properties(device).name,
    "get_device_capability": lambda _device=None: (0, 0),
}


def installed() -> bool:
    """Return whether the device is registered with torch in this process."""
    return bool(_libraries)


def install() -> None:
    """Register the device with torch in this process, once.

    Raises PprankError if this torch lacks private functions that the device needs, or has another
    device of this kind.
    """
    if installed():
        return
    from pytest_pprank.devices.sim import collectives, entry_points, private_api

    private_api.check()
    from torch.utils import backend_registration

    module = types.ModuleType(f"torch.{NAME}")
    for name, value in _MEMBERS.items():
        setattr(module, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)
        _register_kernels()
        _libraries.append(collectives.register())
    entry_points.install()
    collectives.install()


def _register_kernels() -> None:
    from pytest_pprank.devices.sim import factories
    from pytest_pprank.devices.sim.kernels import make_kernel
    from pytest_pprank.devices.sim.plans import Plan

    libraries: dict[str, torch.library.Library] = {}
    made: dict[str, Any] = {}

    def library_of(namespace: str) -> torch.library.Library:
        if namespace not in libraries:
            libraries[namespace] = torch.library.Library(namespace, "IMPL")
            _libraries.append(libraries[namespace])
        return libraries[namespace]

    def register(name: str, kernel: Any, key: str = _KEY) -> None:
        namespace, _, rest = name.partition("::")
        library_of(namespace).impl(rest.removesuffix(".default"), kernel, key)

    def fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the first call of an operator, and register a kernel for later calls."""
        name = op.name()
        if name not in made:
            made[name] = make_kernel(Plan(op))
            register(name, made[name])
        return made[name](*args, **kwargs)

    everything = torch.library.Library("_", "IMPL")
    everything.fallback(fallback, _KEY)
    _libraries.append(everything)
    for name, function in factories.DEVICE_KERNELS.items():
        register(f"aten::{name}", function)
    for name, function in factories.HOST_KERNELS.items():
        library_of("aten").impl(name, function, "CPU", allow_override=True)
    _register_composites(register)
    for name in _structured(factories.DEVICE_KERNELS):
        register(name, _on_first_call(partial(_generic, name)))


def _register_composites(register: Callable[..., None]) -> None:
    """Run operators that torch decomposes as one kernel each, unless they need gradients."""
    from pytest_pprank.devices.sim.kernels import make_kernel
    from pytest_pprank.devices.sim.plans import Plan

    def take(op: Any, with_gradients: Callable[..., Any]) -> None:
        kernel = make_kernel(Plan(op))

        def choose(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                tensors = [one for one in args if isinstance(one, torch.Tensor)]
                if any(one.requires_grad for one in tensors):
                    return with_gradients(*args, **kwargs)
            return kernel(*args, **kwargs)

        register(op.name(), kernel)
        register(op.name(), choose, f"Autograd{_KEY}")

    def attention(*args: Any, **kwargs: Any) -> Any:
        return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]

    linear = torch.ops.aten.linear.default
    take(linear, linear.decompose)
    take(torch.ops.aten.scaled_dot_product_attention.default, attention)


def _generic(name: str) -> Callable[..., Any]:
    from pytest_pprank.devices.sim.kernels import make_kernel
    from pytest_pprank.devices.sim.plans import Plan, overload

    return make_kernel(Plan(overload(name)))


_DIRECT = ("embedding", "zeros", "ones", "full", "arange.start_step", "zeros_like", "ones_like")
"""Operators that torch decomposes into several others, and that models use often."""


def _structured(mine: Container[str]) -> list[str]:
    """Return the operators that torch would run through their ``out`` variant, in two calls."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and has(name, "CompositeExplicitAutogradNonFunctional")
        and name.removeprefix("aten::") not in mine
    ] + [f"aten::{name}" for name in _DIRECT]


def _on_first_call(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    made: list[Callable[..., Any]] = []

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(make())
        return made[0](*args, **kwargs)

    return kernel
