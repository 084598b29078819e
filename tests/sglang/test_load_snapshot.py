"""SGLang's files in /dev/shm: named after the run, and removed however the Scheduler ended."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank.sglang.static.load_snapshot import remove_load_snapshots

if TYPE_CHECKING:
    from pytest_pprank import Pprank

SHM = Path("/dev/shm")


def test_name_is_the_runs_own(scheduler: Any, pprank: Pprank) -> None:
    writer = scheduler.load_snapshot_writer
    if pprank.is_first_stage:
        assert f"sglang_loads_{pprank.workdir.parent.name}-" in writer.path
        assert not Path(writer.path).exists()
    else:
        assert writer is None


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
