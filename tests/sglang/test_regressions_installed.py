"""The regression bench on the real SGLang: one bug that a test finds, one that no test reaches."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Runner

MIRROR = """
id: mirror
title: the host's copy of the sequence lengths is not filtered
patches:
- target: sglang.srt.managers.schedule_batch.ScheduleBatch.filter_batch
  edits:
  - match:
      kind: If
      mentions: [seq_lens_cpu, keep_indices]
      assigns: [seq_lens_cpu]
    replacement: ''
"""


def test_a_bug_is_caught_and_another_is_missed(runner: Runner) -> None:
    folder = runner.folder
    (folder / "mirror.yaml").write_text(MIRROR)
    command = [sys.executable, "-m", "pytest_pprank", "regressions", "mirror.yaml", "26883"]
    command += ["--jobs", "2", "--device", "cpu", "--report", "page.html"]
    done = subprocess.run(
        [*command, "--", "-k", "test_filtered_batch"],
        cwd=folder,
        env=runner.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    bench = json.loads((folder / "page.json").read_text())
    assert bench["baseline"]["green"], done.stdout
    caught, missed = bench["results"]["mirror"], bench["results"]["26883"]
    assert caught["status"] == "caught"
    assert caught["seen_by"] == "assert_materialized_on_device"
    assert caught["names_function"]
    assert "test_filtered_batch_keeps_its_mirrors" in caught["test"]
    assert missed["status"] == "missed"
    assert missed["reason"] == "no test gets to the reverted code"
    assert "1 of 2 caught, 1 missed" in done.stdout
    assert "1 of 2 caught, 1 missed" in (folder / "page.html").read_text()
