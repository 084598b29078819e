"""The registered reverts against the SGLang that is installed, by its source files."""

from __future__ import annotations

import json
import subprocess
import sys
import time

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

APPLY_ALL = """
import json
from pytest_pprank.sglang.preload import import_sglang
from pytest_pprank.sglang.reverts import NAMED
from pytest_pprank.sglang.reverts.reach import attribute, functions_behind
from pytest_pprank.sglang.static import package_root

import_sglang()

def names(target):
    module, cls, function = target.rsplit(".", 2)
    codes = [f.__code__ for f in functions_behind(attribute(module, (cls, function)))]
    return {name for code in codes for name in (*code.co_names, *code.co_varnames)}

changed = {}
for name, revert in NAMED.items():
    (edited,) = revert.edited_in(package_root())
    before = names(edited.target)
    (done,) = revert.apply()
    after = names(edited.target)
    assert done.target == edited.target
    assert not done.already and done.lineno > 1
    changed[name] = [f"-{n}" for n in before - after] + [f"+{n}" for n in after - before]
    (again,) = revert.apply()
    assert again.already
print(json.dumps(changed))
"""


def test_every_registered_revert_changes_its_function() -> None:
    assert set(CHANGED) == set(NAMED)
    ran = subprocess.run([sys.executable, "-c", APPLY_ALL], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    changed = json.loads(ran.stdout.splitlines()[-1])
    for name, expected in CHANGED.items():
        assert set(expected) <= set(changed[name]), name
