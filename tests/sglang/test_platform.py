"""The platform that the fork server selects."""

from __future__ import annotations

import subprocess
import sys

_WITHOUT_ENTRY_POINT = """
import os, sys
from importlib import metadata
real = metadata.entry_points
from pytest_pprank.sglang import platform
platform.select_platform("cpu")
names = [entry.name for entry in metadata.entry_points(group=platform.GROUP)]
print(names.count("pprank_cpu"), os.environ["SGLANG_PLATFORM"])
os.environ["SGLANG_PLATFORM"] = ""
print(platform.activate())
"""


def test_platform_is_found_once_and_stands_aside_when_not_selected() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_ENTRY_POINT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "pprank_cpu", "None"]
