"""The registered reverts against the installed SGLang, by its source files."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version

import pytest
from packaging.version import Version

from pytest_pprank.errors import DoesNotFit
from pytest_pprank.sglang.reverts import NAMED, Revert, resolve
from pytest_pprank.sglang.reverts.apply import check
from pytest_pprank.sglang.static.release import package_root


def test_founding_case_fits_and_the_check_is_quick() -> None:
    root = package_root()
    assert root
    start = time.perf_counter()
    check(resolve("26883"), root)
    assert time.perf_counter() - start < 1


def test_the_check_imports_neither_sglang_nor_torch_nor_yaml() -> None:
    script = (
        "import sys\n"
        "from pytest_pprank.sglang.reverts import resolve\n"
        "from pytest_pprank.sglang.reverts.apply import check\n"
        "from pytest_pprank.sglang.static.release import package_root\n"
        "check(resolve('26883'), package_root())\n"
        "print(sorted({'sglang', 'torch', 'yaml'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("revert", NAMED.values(), ids=NAMED.keys())
def test_they_fit_the_versions_that_they_are_made_for(revert: Revert) -> None:
    root = package_root()
    assert root
    said = re.match(r"(\S+) (?:to (\S+)|and later)", revert.versions)
    assert said
    installed = Version(version("sglang"))
    meant = Version(said[1]) <= installed and (not said[2] or installed <= Version(said[2]))
    refused = pytest.raises(DoesNotFit, match=rf"it is made for SGLang {re.escape(said[0])}")
    with nullcontext() if meant else refused:
        check(revert, root)
