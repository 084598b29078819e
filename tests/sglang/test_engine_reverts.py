"""Event loops that are broken on purpose: what the stock suite says, in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STALLED = """
title: a chunked prompt is not continued where it fills all there is (SGLang PR 23006)
patches:
- target: sglang.srt.managers.scheduler.Scheduler._get_new_batch_prefill_raw
  edits:
  - match: |
      self.get_num_allocatable_reqs(running_bs, running_batch=running_batch) <= 0
      and self.chunked_req is None
      and not self.enable_priority_preemption
    replacement: |
      self.get_num_allocatable_reqs(running_bs, running_batch=running_batch) <= 0
      and self.chunked_req is not None
      and not self.enable_priority_preemption
"""

LEAKED = """
title: the abort of a chunked request forgets its KV
patches:
- target: sglang.srt.managers.scheduler.Scheduler.process_pending_chunked_abort
  edits:
  - match: |
      release_kv_cache(req, self.tree_cache, is_insert=False)
    replacement: |
      pass
"""

LONELY = """
title: only the receiver does without the output of a pure chunk (SGLang PR 26148)
patches:
- target: sglang.srt.managers.scheduler_pp_mixin.SchedulerPPMixin._pp_send_recv_and_preprocess_output_tensors
  edits:
  - match: |
      if _pp_can_skip_output_comm(target):
    replacement: |
      if False:
"""  # noqa: E501

CUT_OFF = """
import threading

def test_stage_that_does_not_come_back(engine, pprank):
    if pprank.rank == 1:
        engine.on_forward(lambda batch: threading.Event().wait())
    engine.generate([20])
"""


@pytest.mark.parametrize(
    ("revert", "test", "words"),
    [
        (STALLED, "at_a_time", ["EngineStalled", "req-001: prompt of 192 tokens", "in the middle"]),
        (LEAKED, "in_the_middle", ["memory leak detected", "held by req-000: request slot"]),
        (LONELY, "not_sent", ["deadlock: rank 0 waits in recv from rank 1", "scheduler_pp_mixin"]),
    ],
    ids=["stalled", "leaked", "deadlock"],
)
def test_suite_is_red(revert: str, test: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "revert.yaml").write_text(revert)
    out = run("--pyargs", "pytest_pprank.suite.test_generate", "-k", test, folder=tmp_path)
    assert "1 failed" in out
    for expected in words:
        assert expected in out


def test_stage_that_cannot_leave_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(CUT_OFF)
    out = run("--pprank-timeout", "8", "test_it.py", folder=tmp_path, revert=False)
    assert "1 failed" in out
    assert "rank 1" in out
    assert "in <lambda>" in out  # the stack of the event loop's thread on rank 1


def run(*arguments: str, folder: Path, revert: bool = True) -> str:
    command = [sys.executable, "-m", "pytest", "--pp-size", "2", "-p", "no:cacheprovider"]
    command += ["--pprank-revert", "revert.yaml"] if revert else []
    done = subprocess.run(
        [*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout
