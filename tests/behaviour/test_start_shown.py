"""What a start waits for is shown on a terminal, and in reports and durations."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Runner

SOURCE = """
import pytest

def test_first(pprank): pass
def test_second(pprank): pass

@pytest.mark.pprank(pp=1)
def test_of_another_group(pprank): pass
"""


def read_all(fd: int) -> str:
    output = b""
    try:
        while data := os.read(fd, 1 << 16):
            output += data
    except OSError:  # the other end is closed
        return output.decode()
    return output.decode()


def on_a_terminal(runner: Runner, *args: str) -> str:
    """Run pytest with a terminal of its own; return its output there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", *args]
    environment = runner.environment(TERM="xterm", COLUMNS="100")
    with subprocess.Popen(
        command, cwd=runner.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        output = read_all(ours)
    os.close(ours)
    return output


def test_start_is_shown_and_told(runner: Runner) -> None:
    runner.write(test_it=SOURCE)
    flags = ["--pp-size=2", "--pprank-device=cpu", "--durations=0", "-vv", "--junitxml=j.xml"]
    output = on_a_terminal(runner, *flags)
    assert "3 passed" in output, output

    assert "\x1b7 [pprank: importing torch, " in output
    assert "once, for all ranks" not in output  # only logs have that text
    last_words = output.rindex("[pprank: ")
    assert output.index("\x1b[K", last_words) < output.index("PASSED", last_words)
    line = output[: output.index("PASSED")].rpartition("\n")[2]
    assert line.startswith("test_it.py::test_first[pp2] \x1b7 [pprank: "), output

    rows = re.findall(r"([\d.]+)s start +test_it.py::(\w+)", output)
    assert sorted(test for _, test in rows) == ["test_first", "test_of_another_group"]
    shown = {
        case.attrib["name"].partition("[")[0]: [
            p.attrib["value"] for p in case.iter("property") if p.get("name") == "pprank_start"
        ]
        for case in ElementTree.parse(runner.folder / "j.xml").iter("testcase")
    }
    assert shown["test_second"] == []
    (first,), (other,) = shown["test_first"], shown["test_of_another_group"]
    assert re.match(r"worker group g1 started in [\d.]+ s: .*imports \(torch, pytest", first)
    assert "s ranks 0,1 forked" in first
    assert other.startswith("worker group g2 started in ")
    assert float({test: seconds for seconds, test in rows}["test_first"]) > 0


def test_long_test_shows_where_its_ranks_are(runner: Runner) -> None:
    """A rank that nobody waits for is not named; nothing of it stays in the line."""
    source = """
        import time, pytest

        def test_slow(pprank):
            if pprank.rank:
                time.sleep(3)
    """
    runner.write(test_it=source)
    output = on_a_terminal(runner, "--pp-size=2", "--pprank-device=cpu", "-v")
    assert "1 passed" in output, output
    assert "[pprank: call on rank 1, " in output
    last_words = output.rindex("[pprank: ")
    assert output.index("\x1b[K", last_words) < output.index("PASSED", last_words)
