"""The registered reverts against the SGLang that is installed, by its source files."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from pytest_pprank.sglang.reverts import NAMED, resolve
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


# names that the edited function must have done without (-) or got (+)
CHANGED = {
    "26883": ["-prefill_input_ids_cpu", "-to"],
    "27374": ["-metadata_buffers"],
    "29405": ["-pp_size"],
    "31869": ["-poll_and_all_reduce_pp"],
    "37669": ["+_"],
}


def test_every_registered_revert_changes_its_function(imported: dict[str, Any]) -> None:
    assert set(CHANGED) == set(NAMED)
    for name, expected in CHANGED.items():
        assert set(expected) <= set(imported["changed"][name]), name
