"""``python -m pytest_pprank doctor`` on this machine, on which ranked tests do run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Runner

from pytest_pprank.doctor.table import CHECKS

NAMES = [check.name for check in CHECKS]


def doctor(runner: Runner, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest_pprank", "doctor", *arguments],
        cwd=runner.folder,
        env=runner.environment(**environment),
        capture_output=True,
        text=True,
        timeout=runner.deadline,
        check=False,
    )
    assert done.stderr == ""
    assert runner.processes() == {}
    return done


def test_text(runner: Runner) -> None:
    done = doctor(runner)
    assert done.returncode == 0, done.stdout
    *lines, last = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == NAMES
    assert [line for line in lines if " broken " in line] == []
    assert last.startswith("can run: ranked torch tests on cpu")


def test_json(runner: Runner) -> None:
    done = doctor(runner, "--json")
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    assert [check["name"] for check in said["checks"]] == NAMES
    assert said["can_run"]["cpu"]
    assert said["can_run"]["sim"]
    started = said["checks"][-1]
    assert started["state"] == "ok"
    assert started["text"].startswith("groups are forked, with torch")


def test_what_stops_every_test_is_the_exit_code(runner: Runner) -> None:
    done = doctor(runner, GLOO_SOCKET_IFNAME="none0")
    assert done.returncode == 1, done.stdout
    assert "mend:    unset GLOO_SOCKET_IFNAME" in done.stdout
    assert done.stdout.endswith("can run: nothing\n")
