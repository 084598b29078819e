"""Makes ``import sglang`` work in an environment whose torchvision cannot load its operators.

torchvision's wheels on PyPI are for torch's CUDA builds. With a CPU build of torch `import
torchvision` fails, and so do transformers and SGLang. Ranks use a work-around
(`sglang.static.torchvision_shim`); this module installs it for all Python processes of an
environment that `setup` has created.
"""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from pytest_pprank.provision import pip
from pytest_pprank.sglang.static import torchvision_shim

_MODULE = "_pytest_pprank_torchvision"


def fails_to_import() -> bool:
    """Return whether `import torchvision` fails for the reason that `cure` removes."""
    tried = pip.run_python(["-c", "import torchvision"])
    return not tried.ok and torchvision_shim.SYMPTOM in tried.output


def cure(purelib: str = "") -> Path:
    """Install the import hook for all processes of this environment; return the .pth file.

    The hook is a copy of the module: it must work in processes that do not import this package.
    """
    folder = Path(purelib or sysconfig.get_path("purelib"))
    shutil.copyfile(str(torchvision_shim.__file__), folder / f"{_MODULE}.py")
    file = folder / f"{_MODULE}.pth"
    file.write_text(f"import {_MODULE}; {_MODULE}.install_import_hook()\n", encoding="utf-8")
    return file
