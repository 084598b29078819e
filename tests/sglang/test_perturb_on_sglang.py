"""Perturbation of real Schedulers: what it makes visible, and what it leaves as it was."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REVERT = """
id: agreement
title: stages let go what one of them is done with, and start what they find ready themselves
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
- target: sglang.srt.disaggregation.prefill.PrefillBootstrapQueue.pop_bootstrapped
  edits:
  - match: |  # SGLang PR 31869
      polls = poll_and_all_reduce_pp(
          (req.rid for req in self.queue),
          KVPoll.WaitingForInput,
          pp_good_rids,
          pp_bad_rids,
      )
    replacement: |
      _check = set(pp_good_rids or []) | set(pp_bad_rids or [])
      _local = poll_and_all_reduce_attn_cp_tp_group(
          [req.disagg_kv_sender for req in self.queue],
          self.scheduler.attn_cp_cpu_group,
          self.scheduler.attn_tp_cpu_group,
      )
      polls = [p if r.rid in _check else None for r, p in zip(self.queue, _local)]
"""
TESTS = """
import pytest
from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference

# a seed with which stage 1 hears of its first room 6 iterations late, and stage 0 at once
@pytest.mark.pprank(prefill=2, decode=1, perturb="5:polls")
def test_stages_that_hear_late(disagg):
    disagg.generate([17], 2)


@pytest.mark.pprank(prefill=2, decode=1)
def test_request_lost_after_agreement(disagg):
    rid = disagg.submit(30, to="decode")
    disagg.step()
    ready = "WaitingForInput"
    disagg.run_until(lambda: all(ready in v.rooms.values() for v in disagg.prefill.stages))
    disagg.lose_room(stages=[1])
    disagg.forward(rid, to="prefill")
    disagg.run_until_state(rid, "transferring", role="prefill")


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
    (folder / "agreement.yaml").write_text(REVERT)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v"]
    command += ["--pprank-timeout", "60", "--pprank-revert", "agreement.yaml"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_stages_that_hear_late[prefill2-decode1]", "FAILED"),
        ("test_request_lost_after_agreement[prefill2-decode1]", "FAILED"),
        ("test_retraction[pp2]", "PASSED"),
        ("test_aborts[pp2]", "FAILED"),
    ],
)
def test_outcome(output: str, test: str, outcome: str) -> None:
    assert f"::{test} {outcome}" in output, output


def test_race_is_named(output: str) -> None:
    assert "consensus: this stage brings req-000 as ready, and is not ready for it" in output
    differ = "consensus: consensus received and applied differ in req-000: received ['req-000']"
    assert differ in output
    assert re.search(
        r"perturbed: seed 5 \(polls\)\n(  rank.*\n)*  ranks? [\d,]+: polls \w+", output
    )


def test_nothing_else_has_gone_wrong_under_aborts(output: str) -> None:
    assert "2 == 3" in output.partition("_ test_aborts[pp2] _")[2], output
    assert re.search(r"  rank \d: .*skew .*messages .*late_sends .*aborts", output), output
