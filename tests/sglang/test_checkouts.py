"""SGLang from source: a checkout on PYTHONPATH before the wheel, and ``pip install -e``."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.sglang.static.installed import installed

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "sglang"
version = "{version}"
[tool.setuptools.packages.find]
include = ["sglang*"]
"""

WHERE = """
from pathlib import Path
import sglang

def test_where(scheduler, pprank):
    import inspect
    files = {sglang.__file__, inspect.getfile(type(scheduler))}
    assert {Path(it).is_relative_to(ROOT) for it in files} == {True}, files
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder like a clone of SGLang at the tag of the installed release.

    Its files are links; files that only a build writes are missing.
    """
    wheel = installed()
    assert wheel is not None
    folder = tmp_path_factory.mktemp("clone")
    _link(wheel.root, folder / "python" / "sglang")
    (folder / "python" / "sglang" / "_version.py").unlink()
    (folder / "python" / "pyproject.toml").write_text(PYPROJECT.format(version=wheel.version))
    who = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    commit = [*who, "commit", "-q", "--allow-empty", "-m", "x"]
    for words in (["init", "-q"], commit, ["tag", f"v{wheel.version}"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def _link(tree: Path, to: Path) -> None:
    for folder, _, files in os.walk(tree):
        there = to / Path(folder).relative_to(tree)
        there.mkdir(parents=True)
        for name in files:
            (there / name).symlink_to(Path(folder) / name)


@pytest.fixture
def start(runner: Runner, checkout: Path) -> Callable[..., Run]:
    """Return a function that runs two tests of the suite, and a check of where SGLang is from."""
    (runner.folder / "test_where.py").write_text(f"ROOT = {str(checkout)!r}\n{WHERE}")
    runner.deadline = 300

    def run(python: Path | None = None, **environment: str) -> Run:
        suite = ["--pyargs", "pytest_pprank.suite.test_startup", "test_where.py"]
        options = ["--pp-size", "2", "--pprank-device", "cpu", "-k", "starts or mixins or where"]
        return runner.run(*suite, *options, python=python, env=environment)

    return run


def sees(ran: Run, checkout: Path) -> None:
    assert ran.counts() == {"passed": 3, "deselected": 1}, ran.out
    here = f"sglang {version('sglang')} ({checkout}/python/sglang, commit "
    assert here in ran.out, ran.out


def test_a_checkout_on_pythonpath_goes_before_the_wheel(
    start: Callable[..., Run], checkout: Path
) -> None:
    paths = [str(checkout / "python"), os.environ.get("PYTHONPATH", "")]
    sees(start(PYTHONPATH=os.pathsep.join(filter(None, paths))), checkout)


@pytest.fixture
def editable(tmp_path: Path, checkout: Path) -> Path:
    """Return the interpreter of an environment like this one, but with SGLang installed by -e."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name != "sglang" and not entry.name.startswith("sglang-"):
            (packages / entry.name).symlink_to(entry)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    source = ["--no-build-isolation", "-e", str(checkout / "python")]
    subprocess.run([*pip, *source], check=True)
    return python


def test_an_editable_install(start: Callable[..., Run], checkout: Path, editable: Path) -> None:
    sees(start(editable), checkout)
