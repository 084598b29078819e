"""Event loops that are broken on purpose, in a pytest of their own: what is said about them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

# each is seen by one test of the stock suite
REVERT = """
title: three faults at once
patches:
- target: sglang.srt.managers.scheduler.Scheduler._get_new_batch_prefill_raw
  edits:
  - match: |  # SGLang PR 23006: a chunked prompt is not continued where it fills all there is
      self.get_num_allocatable_reqs(running_bs, running_batch=running_batch) <= 0
      and self.chunked_req is None
      and not self.enable_priority_preemption
    replacement: |
      self.get_num_allocatable_reqs(running_bs, running_batch=running_batch) <= 0
      and self.chunked_req is not None
      and not self.enable_priority_preemption
- target: sglang.srt.managers.scheduler.Scheduler.process_pending_chunked_abort
  edits:
  - match: |
      release_kv_cache(req, self.tree_cache, is_insert=False)
    replacement: |
      pass
- target: sglang.srt.managers.scheduler_pp_mixin.SchedulerPPMixin.\
_pp_send_recv_and_preprocess_output_tensors
  edits:
  - match: |  # SGLang PR 26148: only the sender does without the output of a pure chunk
      if _pp_can_skip_output_comm(target):
    replacement: |
      if False:
"""

STUCK = """
import threading

def test_stage_that_does_not_come_back(engine, pprank):
    if pprank.rank == 1:
        engine.on_forward(lambda batch: threading.Event().wait())
    engine.generate([20])
"""

SUITE = "one_request_at_a_time or (in_the_middle_of_its_prompt and not all) or chunks_whose_output"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    (folder / "revert.yaml").write_text(REVERT)
    (folder / "test_stuck.py").write_text(STUCK)
    command = [sys.executable, "-m", "pytest", "--pp-size", "2", "-p", "no:cacheprovider"]
    command += ["--pprank-revert", "revert.yaml", "--pprank-timeout", "15"]
    themes = ("chunks", "aborts", "pressure")
    command += ["--pyargs", "test_stuck.py"]
    command += [f"pytest_pprank.suite.test_generate_{theme}" for theme in themes]
    command += ["-k", f"does_not_come_back or {SUITE}"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (
            "test_one_request_at_a_time",
            [
                "EngineStalled: nothing has moved for",
                "req-001: prompt of 192 tokens",
                "chunked_req",
            ],
        ),
        (
            "test_request_in_the_middle_of_its_prompt",
            [
                "event loop failed in ",
                "ValueError: pool memory leak",
                "held by req-000: request slot",
            ],
        ),
        (
            "test_chunks_whose_output_is_not_sent",
            [
                "hung: deadlock: ranks 0,1",
                "rank 0 waits in recv from rank 1 (scheduler_pp_mixin.py",
            ],
        ),
        (
            "test_stage_that_does_not_come_back",
            ["rank 1", "Stacks of rank 1", "in _at_forward", "in event_loop_pp"],
        ),
    ],
)
def test_fault_is_told(output: str, test: str, words: list[str]) -> None:
    failures = re.split(r"\n_{3,} (test_\w+)\[pp2\] _{3,}\n", output)
    told = dict(zip(failures[1::2], failures[2::2], strict=True))
    assert test in told, output
    for expected in words:
        assert expected in told[test]
