"""The import hook that makes torchvision importable with a CPU build of torch, in new processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytest_pprank.provision.torchvision import cure

_HOOK = """
import importlib.util, sys
from pytest_pprank.sglang.static.torchvision_shim import install_import_hook
before = len(sys.meta_path)
install_import_hook()
install_import_hook()
assert len(sys.meta_path) == before + 1
assert "torch" not in sys.modules
"""


def python(code: str, **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "SGLANG_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _HOOK + code],
        capture_output=True,
        text=True,
        env={**clean, **env},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_torchvision_imports_once_and_only_when_asked_for() -> None:
    """Afterwards SGLang's batches can be imported, as at the top of a test file."""
    code = """
assert importlib.util.find_spec("torchvision") is not None
assert "torchvision" not in sys.modules and "torch" not in sys.modules
import torchvision.ops
print(sys.modules["torchvision"] is torchvision, torchvision.__spec__.origin.endswith(".py"))
print(torchvision.ops.box_area.__module__)
from sglang.srt.managers.schedule_batch import ScheduleBatch
print(ScheduleBatch.__name__)
"""
    output = python(code).split()
    assert [*output[:3], output[-1]] == ["True", "True", "torchvision.ops.boxes", "ScheduleBatch"]


def test_cure_that_setup_installs_works_in_every_process(tmp_path: Path) -> None:
    """It works without this package, which only SGLang imports, as a possible platform."""
    cure(str(tmp_path))
    code = f"""
import site, sys
site.addsitedir({str(tmp_path)!r})
import torchvision
print(torchvision.ops.box_area.__module__, "pytest_pprank" in sys.modules)
import sglang
"""
    bare = {name: value for name, value in os.environ.items() if name != "SGLANG_PLATFORM"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-2:] == ["torchvision.ops.boxes", "False"]


def test_other_errors_of_torchvision_stay_its_own(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('mine')")
    code = """
try:
    import torchvision
except RuntimeError as error:
    print(error, "torchvision" in sys.modules, "torch" in sys.modules)
"""
    assert python(code, PYTHONPATH=str(tmp_path)).split() == ["mine", "False", "False"]


def test_nothing_changes_without_torchvision() -> None:
    code = """
sys.path.clear()
try:
    import torchvision
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert python(code).split() == ["torchvision"]
