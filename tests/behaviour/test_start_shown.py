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
    said = b""
    try:
        while data := os.read(fd, 1 << 16):
            said += data
    except OSError:  # the other end is closed
        return said.decode()
    return said.decode()


def on_a_terminal(runner: Runner, *args: str) -> str:
    """Run pytest with a terminal of its own; return its output there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", *args]
    environment = runner.environment(TERM="xterm", COLUMNS="100")
    with subprocess.Popen(
        command, cwd=runner.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        said = read_all(ours)
    os.close(ours)
    return said


def test_start_is_shown_and_told(runner: Runner) -> None:
    runner.write(test_it=SOURCE)
    flags = ["--pp-size=2", "--pprank-device=cpu", "--durations=0", "-vv", "--junitxml=j.xml"]
    said = on_a_terminal(runner, *flags)
    assert "3 passed" in said, said

    assert "\x1b7 [pprank: importing torch, " in said
    assert "once, for all ranks" not in said  # only logs have that text
    last_words = said.rindex("[pprank: ")
    assert said.index("\x1b[K", last_words) < said.index("PASSED", last_words)
    line = said[: said.index("PASSED")].rpartition("\n")[2]
    assert line.startswith("test_it.py::test_first[pp2] \x1b7 [pprank: "), said

    rows = re.findall(r"([\d.]+)s start +test_it.py::(\w+)", said)
    assert sorted(test for _, test in rows) == ["test_first", "test_of_another_group"]
    told = {
        case.attrib["name"].partition("[")[0]: [
            p.attrib["value"] for p in case.iter("property") if p.get("name") == "pprank_start"
        ]
        for case in ElementTree.parse(runner.folder / "j.xml").iter("testcase")
    }
    assert told["test_second"] == []
    (first,), (other,) = told["test_first"], told["test_of_another_group"]
    assert re.match(r"worker group g1 started in [\d.]+ s: .*imports \(torch, pytest", first)
    assert "s ranks 0,1 forked" in first
    assert other.startswith("worker group g2 started in ")
    assert float({test: seconds for seconds, test in rows}["test_first"]) > 0
