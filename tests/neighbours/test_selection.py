"""Plugins that choose, order or repeat tests do so on the controller; ranks follow."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

OPTIONS = ("--pp-size=2", "--pprank-device=cpu", "--pprank-lease=off")

SOURCE = "".join(f"def test_{n}(pprank):\n    pprank.barrier()\n" for n in range(4))


def order(run: Run) -> list[str]:
    return [
        line.split()[0].rpartition("::")[2] for line in run.out.splitlines() if "PASSED" in line
    ]


def test_split(runner: Runner) -> None:
    runner.write(test_it=SOURCE)
    run = runner.run(*OPTIONS, "--store-durations")
    assert run.counts() == {"passed": 4}
    stored = json.loads((runner.folder / ".test_durations").read_text())
    assert sorted(stored) == [f"test_it.py::test_{n}[pp2]" for n in range(4)]
    runs = [runner.run(*OPTIONS, "--splits=2", f"--group={n}") for n in (1, 2)]
    assert [run.ret for run in runs] == [0, 0]
    assert sorted(order(runs[0]) + order(runs[1])) == [f"test_{n}[pp2]" for n in range(4)]


def test_repeat(runner: Runner) -> None:
    runner.write(test_it="def test_it(pprank):\n    pprank.barrier()\n")
    run = runner.run(*OPTIONS, "--count=3")
    assert run.counts() == {"passed": 3}


def test_order(runner: Runner) -> None:
    runner.write(
        test_it="""
        import pytest
        @pytest.mark.order(2)
        def test_second(pprank): pass
        @pytest.mark.order(1)
        def test_first(pprank): pass
        """
    )
    assert order(runner.run(*OPTIONS)) == ["test_first[pp2]", "test_second[pp2]"]


def test_picked(runner: Runner) -> None:
    """It selects only tests of files that have changed."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    runner.write(test_old=SOURCE)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=runner.folder, check=True)
    runner.write(test_new="def test_new(pprank):\n    pprank.barrier()\n")
    run = runner.run(*OPTIONS, "--picked")
    assert order(run) == ["test_new[pp2]"]


def test_testmon(runner: Runner) -> None:
    """It would leave out tests that must run; the plugin reports that instead."""
    runner.write(test_it=SOURCE)
    run = runner.run(*OPTIONS, "--testmon", cache=True)
    assert run.ret == 4
    assert "--testmon: pytest-testmon does not see what ranks run" in run.out


@pytest.mark.parametrize("more", [(), ("-pno:xdist",)], ids=["xdist", "no-xdist"])
def test_randomly(runner: Runner, more: tuple[str]) -> None:
    """All ranks have the same seed and order."""
    runner.write(
        test_it="""
        import random
        def test_one(pprank):
            assert len(set(pprank.gather(random.random()))) == 1
        def test_two(pprank):
            assert len(set(pprank.gather(random.random()))) == 1
        """
    )
    run = runner.run(*OPTIONS, "-prandomly", "-prandomly", *more)
    assert run.counts() == {"passed": 2}, run.out


ONCE = """
import json, os
import pytest
from filelock import FileLock

@pytest.fixture(scope="session")
def made(tmp_path_factory, worker_id):
    folder = tmp_path_factory.getbasetemp().parent
    with FileLock(folder / "made.lock"):
        file = folder / "made.json"
        if not file.exists():
            file.write_text(json.dumps([worker_id, os.getpid()]))
        return json.loads(file.read_text())

def test_once(made, pprank, request):
    (made,) = set(map(tuple, pprank.gather(made)))
    assert request.config.workerinput["workerid"] == os.environ["PYTEST_XDIST_WORKER"]
    import xdist
    assert xdist.is_xdist_worker(request)
"""


@pytest.mark.parametrize("more", [(), ("-n2",)], ids=["alone", "n2"])
def test_xdist(runner: Runner, more: tuple[str]) -> None:
    """xdist's recipe by which workers create something only once works for ranks, too."""
    runner.write(test_it=ONCE)
    assert runner.run(*OPTIONS, *more).counts() == {"passed": 1}


def test_hooks_of_nodes(runner: Runner) -> None:
    """Plugins that talk to workers of xdist talk to ranks, too."""
    runner.write(
        conftest="""
        import pytest
        @pytest.hookimpl(optionalhook=True)
        def pytest_configure_node(node):
            node.workerinput["told"] = "hello"
        @pytest.hookimpl(optionalhook=True)
        def pytest_testnodedown(node, error):
            print("left", node.workerinput["pprank"], node.workeroutput["answer"], error)
        def pytest_sessionfinish(session):
            if hasattr(session.config, "workerinput"):
                session.config.workeroutput["answer"] = session.config.workerinput["told"] * 2
                session.config.workeroutput["bad"] = object()
        """,
        test_it="def test_it(pprank):\n    pass\n",
    )
    run = runner.run(*OPTIONS, "-s")
    for rank in (0, 1):
        assert f"left {rank} hellohello None" in run.out
    assert "workeroutput['bad'] does not reach the controller: object" in run.out
