"""SGLang's own source_patcher compared with ours: we accept what it accepts, with the same result.

`tests/patcher_cases.yaml` has the cases; tests/unit/test_reverts_lines.py checks ours against them.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_pprank.errors import DoesNotFit
from pytest_pprank.sglang.reverts import resolve
from pytest_pprank.sglang.reverts.apply import check, edited_in
from pytest_pprank.sglang.static.release import package_root

SCRIPT = Path(__file__).parent / "inner" / "process" / "source_patcher.py"
CASES = yaml.safe_load((Path(__file__).parents[1] / "patcher_cases.yaml").read_text())


def _answer(*args: str) -> Any:
    ran = subprocess.run([sys.executable, str(SCRIPT), *args], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return the results of SGLang's patcher for each case."""
    folder = tmp_path_factory.mktemp("cases")
    asked = []
    for case in CASES:
        module = f"case_{case['id']}"
        (folder / f"{module}.py").write_text(case["source"])
        patch = {key: case[key] for key in ("preamble", "edits") if key in case}
        patch["target"] = f"{module}.{case.get('target', 'f')}"
        asked.append([yaml.safe_dump({"patches": [patch]}), module, case.get("call", "f(3)")])
    (folder / "cases.json").write_text(json.dumps(asked))
    return dict(zip([case["id"] for case in CASES], _answer(str(folder)), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_sglang_accepts_and_does_the_same(
    theirs: dict[str, dict[str, str]], case: dict[str, Any]
) -> None:
    answer = theirs[case["id"]]
    if "result" in case:
        assert answer == {"result": repr(eval(case["result"]))}
    else:
        assert "refused" in answer


def test_patches_that_sglang_ships(tmp_path: Path) -> None:
    """Patches that fit this version by SGLang's rules fit by ours, with the same result."""
    root = package_root()
    assert root
    fitting = 0
    for number, text, edited in _answer():
        (tmp_path / f"{number}.yaml").write_text(text)
        revert = resolve(str(tmp_path / f"{number}.yaml"))
        if edited is None:
            with pytest.raises(DoesNotFit):
                check(revert, root)
            continue
        ours = [ast.dump(each.after) for each in edited_in(revert, root)]
        assert ours == [_dump(source) for source in edited], number
        fitting += 1
    assert fitting


def _dump(source: str) -> str:
    """Return the syntax tree of a function, indented or not: dedenting changes its docstring."""
    tree = ast.parse(f"if True:\n{source}" if source[0].isspace() else source)
    return ast.dump(next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)))
