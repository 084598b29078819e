"""The founding case from end to end: red with the fix of SGLang PR 26883 taken out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_example_is_red_with_the_fix_taken_out() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "pytest_pprank", "--pp-size", "2"]
    command += ["-p", "no:cacheprovider", "--pprank-revert", "26883"]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / "test_profiler_h2d.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for expected in (
        "ForwardBatch.input_ids: found None",
        "prefill_input_ids_cpu still holds",
        "_profile_prefill_latency",
        "on rank 0 (stage 0 of 2)",
        "SGLang PR 26883",
        "1 failed",
    ):
        assert expected in done.stdout
