"""What the kernel reports about processes."""

from __future__ import annotations

import os
import subprocess
import sys

from pytest_pprank.proc import children_of, stat_of


def test_a_process_and_its_child() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        seen = stat_of(child.pid)
        assert seen is not None
        assert seen.parent == os.getpid()
        own = stat_of(os.getpid())
        assert own is not None
        assert seen.started >= own.started
        assert child.pid in children_of(os.getpid())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        dead = stat_of(child.pid)
        assert dead is not None
        assert dead.state == "Z"
    assert stat_of(child.pid) is None
    assert child.pid not in children_of(os.getpid())
