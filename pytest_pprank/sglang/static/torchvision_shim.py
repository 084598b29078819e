"""Makes torchvision importable with a CPU build of torch.

torchvision's wheel cannot load its C++ operators there. Its Python part registers fake kernels for
two of them on import, so `import torchvision` fails although the operators are never called.
transformers and sglang import torchvision. Defining the two schemas is enough; a call to such an
operator still fails, with torch's own NotImplementedError.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

SYMPTOM = "operator torchvision::nms does not exist"
_SCHEMA = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# torch drops the schemas of a Library object when the object is garbage-collected.
_kept: list[Any] = []


def ensure_torchvision() -> None:
    """Import torchvision, defining its two missing schemas only if the import needs them."""
    if importlib.util.find_spec("torchvision") is not None:
        install_import_hook()
        importlib.import_module("torchvision")


def install_import_hook() -> None:
    """Make the first import of torchvision in this process work as `ensure_torchvision` does.

    Imports nothing now. Changes nothing if torchvision is missing or imports without help.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds torchvision if it is on sys.path as ordinary source files, and nothing else."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Executes torchvision, and once more with the schemas if only those were missing."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if SYMPTOM not in str(error):
                raise
            _forget_submodules()
            _define_schemas()
            super().exec_module(module)


def _define_schemas() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(_SCHEMA.format(operator))
    _kept.append(library)


def _forget_submodules() -> None:
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
