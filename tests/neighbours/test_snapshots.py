"""Plugins that compare with files, and write them: ranks use the files, and none is lost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

OPTIONS = ("--pp-size=2", "--pprank-device=cpu", "--pprank-lease=off")

SYRUPY = """
import os, signal

def test_plain(snapshot):
    assert "plain" == snapshot

def test_ranked(snapshot, pprank):
    assert "ranked" == snapshot

def test_by_rank(snapshot, pprank):
    assert pprank.rank == snapshot(name=f"rank{pprank.rank}")
"""
KILLED = """
def test_killed(snapshot, pprank):
    assert "killed" == snapshot
    if pprank.rank == 1 and os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    pprank.barrier()
"""
NAMES = ["test_by_rank[pp2][rank0]", "test_by_rank[pp2][rank1]", "test_plain", "test_ranked[pp2]"]


def names(runner: Runner) -> list[str]:
    text = (runner.folder / "__snapshots__" / "test_it.ambr").read_text()
    return sorted(re.findall("^# name: (.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("more", [(), ("-pno:xdist",), ("-n2",)], ids=["alone", "no-xdist", "n2"])
def test_syrupy(runner: Runner, more: tuple[str]) -> None:
    """An update keeps what ranks use, and deletes what is no longer used."""
    runner.write(test_it=SYRUPY + "def test_gone(snapshot, pprank):\n    assert 1 == snapshot")
    assert runner.run(*OPTIONS, "--snapshot-update").ret == 0
    assert names(runner) == sorted([*NAMES, "test_gone[pp2]"])
    runner.write(test_it=SYRUPY)
    run = runner.run(*OPTIONS, "--snapshot-update", *more)
    assert run.ret == 0
    assert names(runner) == NAMES
    run = runner.run(*OPTIONS, *more)
    assert run.ret == 0
    assert "4 snapshots passed." in run.out
    runner.write(test_it=SYRUPY.replace('"ranked" ==', '"else" =='))
    run = runner.run(*OPTIONS, *more)
    assert run.counts() == {"failed": 1, "passed": 2}
    assert "failed on ranks 0,1 of 2" in run.failure("test_ranked[pp2]")


def test_syrupy_and_a_rank_that_dies(runner: Runner) -> None:
    runner.write(test_it=SYRUPY + KILLED)
    assert runner.run(*OPTIONS, "--snapshot-update").ret == 0
    run = runner.run(*OPTIONS, "--snapshot-update", env={"KILL": "yes"})
    assert "a rank is lost, and with it which snapshots it has used: none is removed" in run.out
    assert names(runner) == sorted([*NAMES, "test_killed[pp2]"])


REGRESSIONS = """
def test_files(pprank, file_regression, data_regression):
    data_regression.check({"size": pprank.world_size})

def test_by_rank(pprank, file_regression):
    file_regression.check(f"text of {pprank.rank}", basename=f"rank{pprank.rank}")
"""


def test_regressions(runner: Runner) -> None:
    """A missing file is written once, and fails the test; the next run passes."""
    runner.write(test_it=REGRESSIONS)
    run = runner.run(*OPTIONS)
    assert run.counts() == {"failed": 2}
    assert "failed on rank" in run.failure("test_files[pp2]")
    files = sorted(path.name for path in (runner.folder / "test_it").iterdir())
    assert files == ["rank0.txt", "rank1.txt", "test_files_pp2_.yml"]
    assert runner.run(*OPTIONS).counts() == {"passed": 2}
    (runner.folder / "test_it" / "rank1.txt").write_text("other")
    run = runner.run(*OPTIONS)
    assert run.counts() == {"failed": 1, "passed": 1}
    assert "failed on rank 1 of 2" in run.failure("test_by_rank[pp2]")


INLINE = """
from inline_snapshot import snapshot

def test_ranked(pprank):
    assert pprank.world_size == snapshot(2)

def test_wrong(pprank):
    assert pprank.world_size == snapshot(3)

def test_plain():
    assert 1 + 1 == snapshot(5)
"""


def test_inline_snapshot(runner: Runner) -> None:
    """It updates plain tests; ranked ones only compare, and their source stays unchanged."""
    runner.write(test_it=INLINE)
    run = runner.run(*OPTIONS, "--inline-snapshot=fix")
    assert "failed on ranks 0,1 of 2" in run.failure("test_wrong[pp2]")
    assert run.outcome("test_ranked[pp2]") == "PASSED"
    source = (runner.folder / "test_it.py").read_text()
    assert source.strip() == INLINE.strip().replace("snapshot(5)", "snapshot(2)")
