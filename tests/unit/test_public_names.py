"""What users import from `pytest_pprank`, and the error for a typo in it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import pytest_pprank

ROOT = Path(__file__).parents[2]


def test_all_names_are_there_and_shown() -> None:
    for name in pytest_pprank.__all__:
        assert name in dir(pytest_pprank)


# no importorskip: runs in this process (pytester) may have imported torch and dropped it again,
# and numpy cannot be loaded twice
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_importing_them_needs_no_sglang() -> None:
    code = f"from pytest_pprank import {', '.join(pytest_pprank._LATER)}\nimport sys\n"
    code += "assert 'sglang' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_errors_that_the_documentation_names_can_be_imported() -> None:
    text = "".join(p.read_text("utf-8") for p in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    ours = {"EngineStalled", "StagesDiffer", "AbortLost", "SimRaceError"}
    named = set(re.findall(r"`(\w+(?:Error|Stalled|Differ|Lost|Failed|Missing))`", text))
    assert ours <= named
    foreign = {name for name in named if name not in pytest_pprank.__all__}
    assert foreign <= {"KeyError", "RuntimeError", "AttributeError", "AssertionError"}


def test_a_name_with_a_typo_says_what_was_meant() -> None:
    with pytest.raises(AttributeError, match="did you mean 'assert_kv_balanced'"):
        pytest_pprank.assert_kv_balancd  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_a_typo(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    file = tmp_path / "user.py"
    file.write_text("from pytest_pprank import assert_kv_balancd, assert_kv_balanced\n")
    printed, _, _ = mypy.run(["--follow-imports=silent", "--ignore-missing-imports", str(file)])
    assert 'no attribute "assert_kv_balancd"' in printed
    assert '"assert_kv_balanced"' not in printed.split("maybe")[0]
