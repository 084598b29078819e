"""The registered reverts against the SGLang that is installed, by its source files."""

from __future__ import annotations

import subprocess
import sys
import time

from pytest_pprank.sglang.reverts import resolve
from pytest_pprank.sglang.static import package_root


def test_founding_case_fits_and_the_check_is_quick() -> None:
    root = package_root()
    assert root
    start = time.perf_counter()
    resolve("26883").check(root)
    assert time.perf_counter() - start < 1


def test_the_check_imports_neither_sglang_nor_torch_nor_yaml() -> None:
    script = (
        "import sys\n"
        "from pytest_pprank.sglang.reverts import resolve\n"
        "from pytest_pprank.sglang.static import package_root\n"
        "resolve('26883').check(package_root())\n"
        "print(sorted({'sglang', 'torch', 'yaml'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_founding_case_takes_the_copy_to_the_device_out_of_the_profiler() -> None:
    script = (
        "import importlib\n"
        "from pytest_pprank.sglang.reverts import resolve\n"
        "from pytest_pprank.sglang.torchvision_shim import ensure_torchvision\n"
        "ensure_torchvision()\n"
        "(done,) = resolve('26883').apply()\n"
        "print(done.already, done.lineno > 1, done.target.startswith('sglang.srt.managers'))\n"
        "module, _, rest = done.target.rpartition('.')\n"
        "module, _, cls = module.rpartition('.')\n"
        "function = getattr(getattr(importlib.import_module(module), cls), rest)\n"
        "print('prefill_input_ids_cpu' in function.__code__.co_names)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == ["False", "True", "True", "False"]
