"""pytest-cov reports what ranks have run, without any set-up by the user."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

    Measure = Callable[..., tuple[Run, dict[str, Any]]]

pytest.importorskip("pytest_cov")

PACKAGE = """
def on_ranks(rank):
    if rank == 0:
        return "first"
    return "other"

def here():
    return "controller"

def nowhere():
    return "nobody"

def in_a_killed_group():
    return "dead"
"""
SOURCE = """
import os, signal
import pytest, covered

def test_plain():
    covered.here()

def test_ranked(pprank):
    covered.on_ranks(pprank.rank)

@pytest.mark.no_cover
def test_not_to_be_measured(pprank):
    covered.nowhere()
"""
KILLING = """
import os, signal
import covered

def test_before(pprank):
    covered.on_ranks(pprank.rank)

def test_killed(pprank):
    covered.in_a_killed_group()
    if pprank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    pprank.barrier()

def test_after(pprank):
    pprank.barrier()
"""
OPTIONS = ("--pp-size=2", "--pprank-device=cpu", "--cov=covered", "--cov-report=json:cov.json")
LINES = {name: number for number, name in enumerate(PACKAGE.splitlines(), 1)}


@pytest.fixture
def measured(runner: Runner) -> Measure:
    runner.write(covered=PACKAGE)

    def measure(*options: str, source: str = SOURCE, **kwargs: Any) -> tuple[Run, dict[str, Any]]:
        runner.write(test_it=source)
        run = runner.run(*OPTIONS, *options, **kwargs)
        left = [path.name for path in runner.folder.glob(".coverage*")]
        assert left == [".coverage"], run.out
        (file,) = json.loads((runner.folder / "cov.json").read_text())["files"].values()
        return run, file

    return measure


def line(text: str) -> int:
    return LINES[f"    {text}"]


def test_ranks_count(measured: Measure) -> None:
    run, file = measured("--cov-branch")
    assert run.ret == 0
    assert file["missing_lines"] == [line('return "nobody"'), line('return "dead"')]
    assert file["missing_branches"] == []


def test_with_xdist(measured: Measure) -> None:
    pytest.importorskip("xdist")
    run, file = measured("-n2")
    assert run.ret == 0
    assert file["missing_lines"] == [line('return "nobody"'), line('return "dead"')]


def test_contexts_name_the_test(measured: Measure, runner: Runner) -> None:
    (runner.folder / "own.ini").write_text("[json]\nshow_contexts = true\n")
    _, file = measured("--cov-context=test", "--cov-config=own.ini")
    contexts = file["contexts"][str(line('return "other"'))]
    assert contexts == ["test_it.py::test_ranked[pp2]|run"]


def test_killed_ranks_lose_no_more_than_their_last_test(measured: Measure) -> None:
    run, file = measured(source=KILLING)
    assert run.counts() == {"failed": 1, "passed": 2}
    assert line('return "other"') in file["executed_lines"]
    assert line('return "dead"') in file["missing_lines"]


def test_only_ranks_import_it(measured: Measure) -> None:
    """The controller has no data about it, and does not warn about that."""
    run, file = measured(source="def test_it(pprank):\n    import covered\n    covered.here()\n")
    assert line('return "controller"') in file["executed_lines"]
    assert "CoverageWarning" not in run.out


def test_stopped_run_leaves_no_data_files(runner: Runner) -> None:
    runner.write(covered=PACKAGE, test_it=SOURCE + "    assert False\n\ndef test_after(): pass\n")
    run = runner.run(*OPTIONS, "-x")
    assert "stopping after 1 failures" in run.out
    assert not list(runner.folder.glob(".coverage.*"))


def test_no_cov(runner: Runner) -> None:
    runner.write(covered=PACKAGE, test_it=SOURCE.replace("@pytest.mark.no_cover", ""))
    run = runner.run(*OPTIONS, "--no-cov")
    assert run.counts() == {"passed": 3}
    assert not list(runner.folder.glob(".coverage*"))
