"""Process settings that a test's own code must restore, with functions to read and write them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

_SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGCHLD")
"""The signals that programs install handlers for; reading all signals would be too slow."""
_CPU = "cpu"


@dataclass(frozen=True)
class Setting:
    """`name`: in words. `read` may raise if there is nothing to read; `write` must never raise."""

    name: str
    read: Callable[[], object]
    write: Callable[[Any], object]


@cache
def settings() -> tuple[Setting, ...]:
    """Return all settings that are checked."""
    import torch

    handlers = [getattr(signal, name) for name in _SIGNALS]
    return (
        Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Setting("torch's default device", _default_device(), _set_default_device),
        Setting("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
        Setting(
            "torch's deterministic mode",
            torch.get_deterministic_debug_mode,
            torch.set_deterministic_debug_mode,
        ),
        Setting("the CUDA device", _cuda_device, torch.cuda.set_device),
        Setting("the current directory", os.getcwd, os.chdir),
        *(
            Setting(
                f"the handler of {number.name}",
                partial(signal.getsignal, number),
                partial(signal.signal, number),
            )
            for number in handlers
        ),
    )


def values() -> tuple[object, ...]:
    """Return the values of all settings; None for a setting that cannot be read."""
    return tuple([_read(setting) for setting in settings()])


def restore(before: tuple[object, ...], after: tuple[object, ...]) -> list[str]:
    """Restore settings that changed from `before` to `after` and still have that value.

    Returns the changes in words.
    """
    restored = []
    for setting, old, new in zip(settings(), before, after, strict=True):
        if old == new or old is None or _read(setting) != new:
            continue
        restored.append(f"{setting.name}: {_shown(new)} instead of {_shown(old)}")
        try:
            setting.write(old)
        except (OSError, ValueError, RuntimeError) as error:
            restored[-1] += f" (it cannot be put back: {error})"
    return restored


def _read(setting: Setting) -> object:
    try:
        return setting.read()
    except OSError:  # a current directory that was removed
        return None


def _default_device() -> Callable[[], object]:
    """Return a function that reads torch's default device; most of `values` would be its time.

    A default other than the CPU is a mode (torch.utils._device.DeviceContext), and usually no mode
    of any kind is active.
    """
    import torch

    modes: Callable[[], int] | None = getattr(torch._C, "_len_torch_function_stack", None)
    read: Callable[[], object] = torch.get_default_device
    cpu = torch.device(_CPU)
    return read if modes is None else lambda: read() if modes() else cpu


def _set_default_device(device: object) -> None:
    import torch

    # an explicit "cpu" would install a mode that every call of torch passes through
    torch.set_default_device(None if str(device) == _CPU else device)


def _cuda_device() -> int | None:
    import torch

    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _shown(value: object) -> str:
    name = getattr(value, "__qualname__", getattr(value, "name", None))
    return str(name or ("none" if value is None else value))
