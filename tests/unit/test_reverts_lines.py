"""Edits in the format of SGLang's patcher, applied as it does (tests/patcher_cases.yaml)."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.reverts import Revert, resolve
from pytest_pprank.sglang.reverts.apply import apply, check

CASES = yaml.safe_load((Path(__file__).parents[1] / "patcher_cases.yaml").read_text())
Case = dict[str, Any]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Case], Revert]]:
    """Write the module of a case, ``toy_lines.mod``, and return its revert."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy_lines").mkdir()

    def make(case: Case) -> Revert:
        (tmp_path / "toy_lines" / "mod.py").write_text(case["source"])
        patch: dict[str, object] = {k: case[k] for k in ("preamble", "edits") if k in case}
        patch["target"] = f"toy_lines.mod.{case.get('target', 'f')}"
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({"patches": [patch]}))
        return resolve(str(tmp_path / "r.yaml"))

    importlib.invalidate_caches()
    yield make
    for name in ("toy_lines", "toy_lines.mod"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("case", [c for c in CASES if "result" in c], ids=lambda c: c["id"])
def test_accepted(made: Callable[[Case], Revert], case: Case) -> None:
    apply(made(case))
    module = importlib.import_module("toy_lines.mod")
    assert eval(case.get("call", "f(3)"), vars(module)) == eval(case["result"])


@pytest.mark.parametrize("case", [c for c in CASES if "refused" in c], ids=lambda c: c["id"])
def test_refused(made: Callable[[Case], Revert], case: Case, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(case["refused"])):
        check(made(case), tmp_path / "toy_lines")
