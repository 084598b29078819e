"""SGLang's files in /dev/shm: named after the run, and gone whatever became of the Scheduler."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from pytest_pprank.sglang.load_snapshot import remove_load_snapshots

SHM = Path("/dev/shm")
_FAILS_TO_START = """
from pathlib import Path
import pytest

pytestmark = pytest.mark.sglang(attention_backend="nope")

def test_of_the_same_group(pprank):
    Path("run-name").write_text(pprank.workdir.parent.name)

def test_without_a_scheduler(scheduler):
    pass
"""


def test_name_is_the_runs_own(scheduler: Any, pprank: Any) -> None:
    writer = scheduler.load_snapshot_writer
    if pprank.is_first_stage:
        assert f"sglang_loads_{pprank.workdir.parent.name}-" in writer.path
        assert not Path(writer.path).exists()
    else:
        assert writer is None


def test_scheduler_that_fails_to_start_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(_FAILS_TO_START)
    command = [sys.executable, "-m", "pytest", "--pp-size", "1", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "1 passed, 1 error" in done.stdout, done.stdout
    assert "Invalid attention backend: nope" in done.stdout
    run = (tmp_path / "run-name").read_text()
    assert list(SHM.glob(f"sglang_loads_{run}*")) == []


def test_only_what_has_the_prefix_is_removed() -> None:
    run, other = f"pprank-{uuid.uuid4().hex}", f"pprank-{uuid.uuid4().hex}"
    files = [SHM / f"sglang_loads_{name}-g1-pp_0a1b2c3d.shm" for name in (run, other)]
    for file in files:
        file.touch()
    remove_load_snapshots(run)
    assert [file.exists() for file in files] == [False, True]
    remove_load_snapshots(other)
    assert not files[1].exists()
    with pytest.raises(ValueError, match="empty prefix"):
        remove_load_snapshots("")
