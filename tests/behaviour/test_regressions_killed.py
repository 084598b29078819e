"""kill -9 of the regression bench: its pytest and ranks end; the next bench removes its folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

BENCH = """
import sys
from pytest_pprank.bench.runs import Options, Runner
from pytest_pprank.bench.scratch import scratch_folder

class Local(Options):
    def command(self, revert, *, to_end=False):
        command = [sys.executable, "-m", "pytest", "-p", "pytest_pprank", "-p", "no:cacheprovider"]
        command += ["--pprank-keep"] if self.keep else []
        return [*command, "--pp-size=2", "--pprank-device=cpu", *self.arguments]

with scratch_folder() as folder:
    if sys.argv[2:]:
        Runner(Local(arguments=tuple(sys.argv[2:]), keep=sys.argv[1] == "keep"), folder).run("x")
"""

STUCK = """
import pathlib, time

def test_stuck(pprank):
    (pathlib.Path(__file__).parent / f"up{pprank.rank}").touch()
    time.sleep(10000)
"""


@pytest.fixture
def own_tmp() -> Iterator[Path]:
    """Create a temporary folder for this run, with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def start(runner: Runner, own_tmp: Path, *tests: Path, keep: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BENCH, "keep" if keep else "", *map(str, tests)],
        env=runner.environment(TMPDIR=str(own_tmp)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def benches(own_tmp: Path) -> set[str]:
    return {folder.name for folder in own_tmp.glob("*pprank-regressions-*")}


@pytest.mark.parametrize("keep", [False, True], ids=["", "keep"])
def test_nothing_stays_of_a_killed_bench(
    runner: Runner, tmp_path: Path, own_tmp: Path, keep: bool
) -> None:
    """A kept launcher of a bench ends with it, too."""
    runner.write(test_stuck=STUCK)
    with start(runner, own_tmp, tmp_path / "test_stuck.py", keep=keep) as bench:
        try:
            runner.wait_for(lambda: bench.poll() is not None or _is_up(tmp_path), "ranks are up")
            assert bench.stdout
            assert bench.poll() is None, bench.stdout.read()
            assert len(runner.processes()) >= 6  # bench, pytest, launcher, fork server, ranks
            (killed,) = benches(own_tmp)
            with start(runner, own_tmp) as other:
                assert other.stdout
                assert other.wait() == 0, other.stdout.read()
            assert benches(own_tmp) == {killed}  # a running bench keeps its folder
        finally:
            bench.send_signal(signal.SIGKILL)
    runner.wait_for(lambda: not runner.processes(), f"these are gone: {runner.processes()}")
    runner.wait_for(lambda: not list(own_tmp.glob("pprank-run-*")), "the ranks' folder is gone")
    assert benches(own_tmp) == {killed}
    with start(runner, own_tmp) as bench:
        assert bench.stdout
        assert bench.wait() == 0, bench.stdout.read()
    assert benches(own_tmp) == set()


def _is_up(folder: Path) -> bool:
    return all((folder / f"up{rank}").exists() for rank in (0, 1))
