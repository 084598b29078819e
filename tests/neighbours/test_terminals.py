"""Plugins that replace the terminal output: they show ranked tests; ranks print nothing else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Runner

OPTIONS = ("--pp-size=2", "--pprank-device=cpu", "--pprank-lease=off")

SOURCE = """
def test_plain():
    pass

def test_passes(pprank):
    pass

def test_fails(pprank):
    assert pprank.rank == 0
"""


def on_a_terminal(runner: Runner, *args: str) -> str:
    """Run pytest on a terminal of its own; return the screen output without escapes."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-pno:randomly", "-pno:cacheprovider", *args]
    environment = runner.environment(COLUMNS="120", TERM="xterm")
    with subprocess.Popen(
        command, cwd=runner.folder, env=environment, stdin=its, stdout=its, stderr=its
    ):
        os.close(its)
        shown = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            shown += more
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))


def test_rich(runner: Runner) -> None:
    runner.write(test_it=SOURCE)
    shown = on_a_terminal(runner, *OPTIONS, "--rich")
    assert re.search(r"FAILED\s+test_it.py::test_fails\[pp2\] \[rank 1\] assert 1 == 0", shown), (
        shown
    )
    assert "failed on rank 1 of 2" in shown
    assert re.search(r"3\s+Total Tests", shown)


def test_sugar(runner: Runner) -> None:
    runner.write(test_it=SOURCE)
    shown = on_a_terminal(runner, *OPTIONS)
    assert re.search(r"2 passed", shown), shown
    assert "failed on rank 1 of 2" in shown
    assert "100%" in shown


def test_instafail(runner: Runner) -> None:
    """A failure is shown before the next test."""
    runner.write(test_it=SOURCE + "\ndef test_last(pprank):\n    pass\n")
    run = runner.run(*OPTIONS, "--instafail")
    failure, last = run.out.index("failed on rank 1 of 2"), run.out.index("test_last[pp2] PASSED")
    assert failure < last
    assert run.out.count("failed on rank 1 of 2") == 1
