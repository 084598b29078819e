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
