"""A process that imports SGLang as the fork server does, then applies reverts (inner/process)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_pprank.sglang.compat.consensus import by_store
from pytest_pprank.sglang.reverts import NAMED
from pytest_pprank.sglang.static import release

SCRIPT = Path(__file__).parent / "inner" / "process" / "imported.py"


@pytest.fixture(scope="module")
def imported() -> Any:
    ran = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_import_is_complete_and_safe_to_fork(imported: dict[str, Any]) -> None:
    assert imported["process"] == {
        "threads": 1,
        "cuda": False,
        "scheduler": True,
        "models": True,
        "torchvision": True,
        "handlers": 0,
        "platform": "PprankCpuPlatform",
    }


# names that the edited function must have lost (-) or gained (+)
CHANGED = {
    "26883": ["-prefill_input_ids_cpu", "-to"],
    "27374": ["-metadata_buffers"] if release.is_older_than("0.5.23") else ["-clear_slot"],
    "29405": ["-pp_size"],
    "31869": ["-poll_and_all_reduce_prefill_pp" if by_store() else "-poll_and_all_reduce_pp"],
    "37669": ["+_"],
}


def test_every_registered_revert_changes_its_function(imported: dict[str, Any]) -> None:
    assert set(CHANGED) == set(NAMED)
    for name, expected in CHANGED.items():
        assert set(expected) <= set(imported["changed"][name]), name
