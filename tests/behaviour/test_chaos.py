"""Random faults (benchmarks/chaos.py) get the expected verdicts; the judge detects wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FAULTS = 25
DEADLINE = 1500


def test_no_wrong_verdict_and_nothing_left_behind() -> None:
    command = [sys.executable, str(BENCHMARKS / "chaos.py"), "--seed=25", f"--faults={FAULTS}"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE
    )
    assert f"{FAULTS} faults" in done.stdout, done.stdout
    assert "0 wrong verdicts, 0 leftovers" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the modules of the chaos run importable."""
    monkeypatch.syspath_prepend(BENCHMARKS)


DIED = "rank died: rank 1 died in call: killed by SIGKILL"


def report(
    outcome: str = "failed", when: str = "call", head: str = DIED, text: str = ""
) -> dict[str, Any]:
    return {
        "when": when,
        "outcome": outcome,
        "wasxfail": False,
        "head": head,
        "text": text,
        "size": len(text),
    }


@pytest.mark.usefixtures("chaos")
@pytest.mark.parametrize(
    ("reports", "complaint"),
    [
        ([report()], None),
        ([], "it is 'not reported'"),
        ([report("passed")], "it is 'passed'"),
        ([report(when="setup")], "it is 'error'"),
        ([report(), report(when="teardown")], "should in 'call' alone"),
        ([report(head="hung: no rank got through")], "the verdict is 'hung'"),
        ([report(head=DIED.replace("rank 1", "rank 0"))], "it names ranks [0]"),
        ([report(head=DIED.replace("SIGKILL", "SIGTERM"))], "no 'SIGKILL' in it"),
        ([report(text="out of memory")], "'out of memory' is in it"),
        ([report(text="x" * 2_000_000)], "2000000 characters"),
    ],
)
def test_the_judge(reports: list[dict[str, Any]], complaint: str | None) -> None:
    from chaos_case import Case, troubled
    from chaos_judge import judge

    expected = troubled("call", "died", [1], ["SIGKILL"], ["out of memory"])
    wrong = judge(Case("test_it", "", expected), reports)
    complaints = None if wrong is None else "; ".join(wrong.complaints)
    assert complaints is None if complaint is None else complaint in str(complaints)


@pytest.mark.usefixtures("chaos")
def test_the_same_seed_gives_the_same_tests() -> None:
    from chaos_generator import draw_runs

    runs = draw_runs(1, 40, [2, 3, 4], 10)
    assert runs == draw_runs(1, 40, [2, 3, 4], 10)
    assert runs != draw_runs(2, 40, [2, 3, 4], 10)
    assert sum(bool(case.fault) for run in runs for _, case in run.cases) == 40


DAEMON = """
import os
from processes import adopt_orphans, descendants, end_descendants
adopt_orphans()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        os.execve("/bin/sleep", ["sleep", "600"], {})
    os._exit(0)
os.wait()
print(len(descendants()))
end_descendants()
print(len(descendants()))
"""


def test_a_daemon_without_environment_is_found() -> None:
    out = subprocess.run(
        [sys.executable, "-c", DAEMON], cwd=BENCHMARKS, capture_output=True, text=True, timeout=60
    )
    assert out.stdout.split() == ["1", "0"], out.stderr
