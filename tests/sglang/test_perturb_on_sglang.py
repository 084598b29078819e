"""Perturbation of real Schedulers: what it makes visible, and what it leaves as it was."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

UNION = """
id: union
title: stages let go what one of them is done with
patches:
- target: sglang.srt.managers.scheduler_pp_mixin.SchedulerPPMixin._pp_pd_get_prefill_transferred_ids
  edits:
  - match: |
      transferred_rids = list(
          set(prev_transferred_rids) & set(curr_transferred_rids)
      )
    replacement: |
      transferred_rids = list(
          set(prev_transferred_rids) | set(curr_transferred_rids)
      )
"""
TESTS = """
import pytest
from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference

# a seed with which stage 1 hears of its first room 6 iterations late, and stage 0 at once
@pytest.mark.pprank(prefill=2, decode=1, perturb="5:polls")
def test_stages_that_hear_late(disagg):
    disagg.generate([17], 2)


@pytest.mark.pprank(pp=2, perturb="1:kv_pressure")
def test_retraction(engine):
    results = engine.generate([20, 30, 40], max_new_tokens=30)
    assert any(result.retractions for result in results)
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)


@pytest.mark.pprank(pp=2, perturb="1:aborts,skew,messages,late_sends")
def test_aborts(engine, pprank):
    for length in range(10, 100, 10):
        engine.submit(length, 20)
        engine.step(3)
    engine.drain()
    reasons = [result.finish_reason["type"] for result in engine.results.values()]
    assert_tokens_equal_reference(engine.results.values())
    assert {"abort", "length"} == set(reasons)
    assert_kv_balanced(engine.scheduler)
    assert pprank.world_size == 3, "to see what is told"
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("run")
    (folder / "test_it.py").write_text(TESTS)
    (folder / "union.yaml").write_text(UNION)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v"]
    command += ["--pprank-timeout", "60", "--pprank-revert", "union.yaml"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_stages_that_hear_late[prefill2-decode1]", "FAILED"),
        ("test_retraction[pp2]", "PASSED"),
        ("test_aborts[pp2]", "FAILED"),
    ],
)
def test_outcome(output: str, test: str, outcome: str) -> None:
    assert f"::{test} {outcome}" in output, output


def test_race_is_named(output: str) -> None:
    assert "this stage brings req-000 as ready, and is not ready for it" in output
    assert re.search(
        r"perturbed: seed 5 \(polls\)\n(  rank.*\n)*  ranks? [\d,]+: polls \w+", output
    )


def test_nothing_else_has_gone_wrong_under_aborts(output: str) -> None:
    assert "2 == 3" in output.partition("_ test_aborts[pp2] _")[2], output
    assert re.search(r"  rank \d: .*skew .*messages .*late_sends .*aborts", output), output
