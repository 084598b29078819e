"""The ways to install that README describes, each tried: from a checkout, and from git."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

ROOT = Path(__file__).parents[2]
SOURCES = [pytest.param(str(ROOT), id="checkout"), pytest.param(f"git+file://{ROOT}", id="git")]

RANKED = "def test_it(pprank): assert pprank.gather(pprank.rank) == [0, 1]"


@pytest.mark.parametrize("source", SOURCES)
def test_install(source: str, runner: Runner) -> None:
    if source.startswith("git") and not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    site = runner.folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), source]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    paths = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    where = [sys.executable, "-c", "import pytest_pprank as it; print(it.__file__)"]
    environment = runner.environment(**paths)
    done = subprocess.run(where, env=environment, cwd=runner.folder, capture_output=True, text=True)
    assert done.stdout.startswith(str(site)), done
    setup = [sys.executable, "-m", "pytest_pprank", "setup", "--help"]
    done = subprocess.run(setup, env=environment, cwd=runner.folder, capture_output=True, text=True)
    assert "0.5.13 to 0.5.23" in " ".join(done.stdout.split())  # the package's data files exist
    (runner.folder / "test_it.py").write_text(RANKED)
    run = runner.run("--pp-size", "2", "--pprank-device", "cpu", "test_it.py", env=paths)
    assert run.counts() == {"passed": 1}, run.out
