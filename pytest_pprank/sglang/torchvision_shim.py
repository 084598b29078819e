"""Let torchvision import beside a CPU build of torch.

torchvision's wheel cannot load its C++ operators there, and its Python side registers fake
kernels for two of them on import, so `import torchvision` fails although nobody calls them.
transformers and sglang import it. Defining the two schemas is enough; a call to such an
operator still fails, with torch's own NotImplementedError.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

_SYMPTOM = "operator torchvision::nms does not exist"
_SCHEMA = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# torch drops the schemas of a Library object when it is collected.
_kept: list[Any] = []


def ensure_torchvision() -> None:
    """Import torchvision, defining its two missing schemas only where that import needs them."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
        _forget_half_imported()
        _define_schemas()
        importlib.import_module("torchvision")


def _define_schemas() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(_SCHEMA.format(operator))
    _kept.append(library)


def _forget_half_imported() -> None:
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
