"""The private parts of torch that the device depends on, each with its purpose.

If a release of torch lacks one, `check` names it, before anything has been changed.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

import torch

from pytest_pprank.errors import PprankError

USED = {
    "utils.backend_registration._setup_privateuseone_for_python_backend": "makes the device known",
    "_C._acc.PrivateUse1Hooks": "asked by torch whether the device is there",
    "_C._acc.DeviceGuard": "asked by torch for the type of the device",
    "_C._to_dlpack": "memory: export of a CPU tensor",
    "_C._from_dlpack": "memory: import as a device tensor",
    "_C.TensorBase.copy_": "copies: a tensor's methods without our checks",
    "_C.DispatchKeySet": "views: run the CPU code on device tensors",
    "_C.DispatchKey.CPU": "views: run the CPU code on device tensors",
    "_C._dispatch_get_all_op_names": "collectives: the operators of c10d",
    "_C._dispatch_has_kernel_for_dispatch_key": "collectives: those with a kernel to replace",
    "_ops.OpOverload.redispatch": "views: run the CPU code on device tensors",
    "UntypedStorage._weak_ref": "storages: their address is an identity (_cdata)",
    "utils._device._device_constructors": "factories: filled before they are wrapped",
    "storage._StorageBase.clone": "storages: cloned as tensors",
}


def moved(names: dict[str, str] = USED) -> list[str]:
    """Return those of `names` that this torch lacks, each with its purpose."""
    return [f"torch.{name} ({why})" for name, why in names.items() if not _has(name)]


def _has(name: str) -> bool:
    found: object = torch
    path = "torch"
    for part in name.split("."):
        path += f".{part}"
        if not hasattr(found, part):
            with suppress(ImportError):
                import_module(path)
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def check() -> None:
    """Raise PprankError, naming the private parts of torch that are missing."""
    missing = moved()
    if missing:
        raise PprankError(
            f"device sim: torch {torch.__version__} has moved what the simulated device stands on: "
            f"{'; '.join(missing)}. Use --pprank-device cpu, or a torch that the device is tested "
            "with (README)"
        )
