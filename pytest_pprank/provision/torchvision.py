"""Let ``import sglang`` work in an environment whose torchvision cannot load its operators.

torchvision's wheels on PyPI are for torch's CUDA builds. Beside a CPU build `import torchvision`
fails, and with it transformers and SGLang. Ranks have a cure
(`sglang.static.torchvision_shim`); here every Python of an environment that `setup` has made gets
it.
"""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from pytest_pprank.provision import pip
from pytest_pprank.sglang.static import torchvision_shim

_MODULE = "_pytest_pprank_torchvision"


def fails_to_import() -> bool:
    """Say whether `import torchvision` fails for the reason that can be cured."""
    tried = pip.run_python(["-c", "import torchvision"])
    return not tried.ok and torchvision_shim.SYMPTOM in tried.output


def cure(purelib: str = "") -> Path:
    """Install the import hook for all processes of this environment; returns the .pth file.

    As a copy: it must work in processes that do not want to import this package.
    """
    folder = Path(purelib or sysconfig.get_path("purelib"))
    shutil.copyfile(str(torchvision_shim.__file__), folder / f"{_MODULE}.py")
    file = folder / f"{_MODULE}.pth"
    file.write_text(f"import {_MODULE}; {_MODULE}.install_import_hook()\n", encoding="utf-8")
    return file
