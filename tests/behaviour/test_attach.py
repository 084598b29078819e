"""--pprank-attach: debuggers that attach to ranks by the debug adapter protocol."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from dap import Client
from test_usage import usage_error

if TYPE_CHECKING:
    from tests.conftest import Runner

pytest.importorskip("debugpy")

TESTS = """
def test_it(pprank):
    before = pprank.rank
    if pprank.rank == 1:
        breakpoint()
    assert pprank.gather(before) == [0, 1]

def test_next(pprank):
    pprank.barrier()
"""
LINE = 6
"""The line after the one with the breakpoint, where debugpy stops."""
FLAGS = ("--pp-size=2", "--pprank-device=cpu", "--pprank-attach", "-v", "test_it.py")


@pytest.fixture
def attaching(runner: Runner) -> Runner:
    runner.write(test_it=TESTS)
    return runner


@contextmanager
def attachable(runner: Runner, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Start a run that waits for clients; it is killed at the end of the block, or if it hangs."""
    process = runner.popen(*FLAGS, *flags)
    too_late = threading.Timer(runner.deadline, process.kill)
    too_late.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        too_late.cancel()


def said_until(process: subprocess.Popen[str], text: str) -> str:
    """Return what a run prints up to the first line that is `text`."""
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if line.rstrip("\n") == text:
            return "".join(lines)
    raise AssertionError(f"never said {text!r}:\n{''.join(lines)}")


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def endpoints(said: str) -> dict[int, str]:
    found = re.findall(r"pprank: rank (\d), stage \d of 2 listens on (127\.0\.0\.1:\d+)", said)
    return {int(rank): address for rank, address in found}


def test_a_client_stops_a_rank_and_lets_it_go_on(attaching: Runner, clients: ExitStack) -> None:
    """The test takes longer than its deadline, which stands still."""
    with attachable(attaching, "--pprank-timeout=3") as process:
        said = said_until(process, "}")
        launch = json.loads(said[said.index("{\n") :])
        names = [each["name"] for each in launch["configurations"]]
        assert names == ["pprank: rank 0, stage 0 of 2", "pprank: rank 1, stage 1 of 2"]
        assert launch["compounds"][0]["configurations"] == names
        shown = [each["connect"] for each in launch["configurations"]]
        ports = endpoints(said)
        assert [f"{at['host']}:{at['port']}" for at in shown] == [ports[0], ports[1]]

        first, second = (clients.enter_context(closing(Client(ports[rank]))) for rank in (0, 1))
        first.attach()
        second.attach()
        stopped = second.event("stopped")
        assert second.place(stopped["threadId"]) == ("test_it", LINE)
        with pytest.raises(subprocess.TimeoutExpired):  # longer than the deadline
            process.wait(5)
        second.send("continue", threadId=stopped["threadId"])
        rest, _ = process.communicate(timeout=attaching.deadline)
    assert process.returncode == 0, rest
    assert "2 passed" in rest
    attaching.wait_for(lambda: not attaching.processes(), "nothing is left")


def test_only_the_chosen_rank_is_waited_for(attaching: Runner, clients: ExitStack) -> None:
    with attachable(attaching, "--pprank-pdb=1") as process:
        ports = endpoints(said_until(process, "}"))
        assert list(ports) == [1]
        client = clients.enter_context(closing(Client(ports[1])))
        client.attach()
        stopped = client.event("stopped")
        client.close()  # to detach lets it go on
        rest, _ = process.communicate(timeout=attaching.deadline)
    assert stopped["reason"] in ("breakpoint", "pause", "step")
    assert process.returncode == 0, rest


def test_killed_while_it_waits_it_leaves_nothing(attaching: Runner) -> None:
    with attachable(attaching) as process:
        said_until(process, "}")
    attaching.wait_for(lambda: not attaching.processes(), "nothing is left")


@pytest.mark.parametrize("flag", ["--pdb", "--trace"])
def test_not_with_a_terminal(runner: Runner, flag: str) -> None:
    error = usage_error(runner, "--pp-size=2", "--pprank-attach", flag)
    assert f"--pprank-attach: not with {flag}, which stops at the terminal" in error


def test_without_debugpy(runner: Runner) -> None:
    runner.write(hidden="import sys; sys.modules['debugpy'] = None")
    error = usage_error(runner, "--pp-size=2", "-phidden", "--pprank-attach")
    assert "--pprank-attach needs debugpy: pip install debugpy" in error


def test_not_with_xdist(runner: Runner) -> None:
    pytest.importorskip("xdist")
    error = usage_error(runner, "--pp-size=2", "-n1", "--pprank-attach")
    assert "--pprank-attach is incompatible with distributing tests" in error
