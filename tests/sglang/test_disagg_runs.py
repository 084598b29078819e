"""Prefill and decode in a pytest of its own: what is said of a dead rank, or of wrong sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import os, signal
import pytest

pytestmark = pytest.mark.pprank(prefill=2, decode=1)

@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_killed(disagg, pprank, role):
    disagg.slow_transfer(stages=[0, 1])
    rid = disagg.submit(30)
    disagg.run_until_state(rid, "transferring")
    if (pprank.role, pprank.stage) == (role, 0):
        os.kill(os.getpid(), signal.SIGKILL)
    disagg.drain()

def test_next(disagg):
    assert len(disagg.generate([9])[0].token_ids) == 8

@pytest.mark.pprank(prefill=1, decode=2)
def test_sizes_that_sglang_refuses(disagg):
    disagg.generate([9])
"""


def test_death_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "test_pd.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pprank-grace", "2"]
    command += ["--pprank-timeout", "60", "test_pd.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert "3 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "rank 0 (prefill" in done.stdout or "rank died" in done.stdout
    assert "SIGKILL" in done.stdout
    # decode has as many stages as prefill, or one
    assert "Decode pp size (2) should be equal to prefill pp size (1) or 1" in done.stdout
