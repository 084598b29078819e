"""Mutants of the real SGLang: one that a test kills, and one that is equivalent."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Runner

FILTER = "sglang.srt.managers.schedule_batch:ScheduleBatch.filter_batch"
KILLED = "field left out: self.seq_lens = "
EQUIVALENT = "field left out: self.mamba_track_mask = None"
"""The tiny model has no Mamba layers, so that this is None before, too."""


def mutate(runner: Runner, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest_pprank", "mutate", *words],
        cwd=runner.folder,
        env=runner.environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_one_is_killed_and_an_equivalent_one_survives(runner: Runner) -> None:
    listed = mutate(runner, FILTER, "--list").stdout.splitlines()
    killed, survivor = (
        next(line.partition(" ")[0] for line in listed if words in line)
        for words in (KILLED, EQUIVALENT)
    )
    options = ["--device", "cpu", "--pp-size", "2", "--report", "page.html"]
    tests = ["--", "-k", "test_filtered_batch"]
    done = mutate(runner, killed, survivor, *options, *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    values = json.loads((runner.folder / "page.json").read_text())
    assert values["baseline"]["green"]
    results = values["results"]
    assert results[killed]["status"] == "caught"
    assert "test_filtered_batch" in results[killed]["test"]
    assert results[killed]["seen_by"] == "assert_materialized_on_device"
    assert results[survivor]["status"] == "missed"
    assert results[survivor]["reached"]
    assert "1 of 2 reached mutants killed (50 %): 1 survived, 1 killed" in done.stdout
    assert EQUIVALENT in (runner.folder / "page.html").read_text()
    # the launcher that was kept for the command has ended with it
    runner.wait_for(lambda: not runner.processes(), "its processes are gone")


PLAIN = """
from sglang.srt.disaggregation.utils import _remap_draft_layer_ids

def test_layers():
    assert _remap_draft_layer_ids([0, 1], 4) == [4, 5]
"""


def test_tests_that_are_not_ranked_are_scored(runner: Runner) -> None:
    runner.write(test_plain=PLAIN)
    mutant = "sglang.srt.disaggregation.utils:_remap_draft_layer_ids:arithmetic:1"
    done = mutate(runner, mutant, "--tests", "test_plain.py", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 reached mutants killed (100 %)" in done.stdout
