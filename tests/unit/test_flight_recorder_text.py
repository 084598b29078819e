"""NCCL's flight recorder in words."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_pprank.oplog.read.flight_recorder import read_dump

ENTRY = {
    "state": "started",
    "profiling_name": "nccl:recv 1<-0",
    "is_p2p": True,
    "p2p_seq_id": 4,
    "collective_seq_id": 9,
    "process_group": ["0", "default_pg"],
    "input_sizes": [[2, 3]],
    "input_dtypes": ["Float"],
}


def test_the_last_entries_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "dump.json"
    entries = [{**ENTRY, "p2p_seq_id": n} for n in range(20)]
    file.write_text(json.dumps({"entries": entries}))
    lines = read_dump(file).splitlines()
    assert lines[0] == "(12 earlier ones)"
    assert len(lines) == 9
    line = "started nccl:recv 1<-0 #19 [[2, 3]] ['Float'] in 0 default_pg"
    assert lines[-1].strip() == line


def test_no_dump(tmp_path: Path) -> None:
    assert read_dump(tmp_path / "none") == ""
    (tmp_path / "half").write_text('{"entries": [')
    assert read_dump(tmp_path / "half") == ""
