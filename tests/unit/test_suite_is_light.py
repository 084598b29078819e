"""The controller collects the stock suite without torch, which would cost each run seconds."""

import subprocess
import sys

IMPORT_ALL = """
import pkgutil, sys
from importlib import import_module
from pytest_pprank import suite

names = [module.name for module in pkgutil.iter_modules(suite.__path__)]
for name in names:
    import_module(f"{suite.__name__}.{name}")
print(len(names) > 5, sorted({"torch", "sglang"} & set(sys.modules)))
"""


def test_suite_imports_neither_torch_nor_sglang() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.stdout == "True []\n", done.stderr
