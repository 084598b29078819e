"""Runs SGLang's own source_patcher on test cases, and on the patches that SGLang ships.

Given a folder, it patches the modules there as cases.json says (YAML text, module and expression)
and prints the values of the expressions. Without a folder, it prints each patch that SGLang ships,
with the functions as edited, or null if SGLang's patcher refuses the patch in this version.

The packages that contain the patcher are not executed: they would import torch and SGLang's engine.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import yaml

from pytest_pprank.sglang.reverts.locate import TargetMissing, find_definition
from pytest_pprank.sglang.static.release import package_root

root = package_root()
assert root
for name in ("sglang", "sglang.srt", "sglang.srt.debug_utils"):
    package = types.ModuleType(name)
    package.__path__ = [str(root.parent.joinpath(*name.split(".")))]
    sys.modules[name] = package

from sglang.srt.debug_utils import pr_fix_toggle, source_patcher  # noqa: E402
from sglang.srt.debug_utils.source_patcher import source_editor  # noqa: E402


def result(text: str, module: str, expression: str) -> dict[str, str]:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            source_patcher.apply_patches_from_config(text)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {"result": repr(eval(expression, vars(importlib.import_module(module))))}


def edited(text: str) -> list[str] | None:
    config = source_patcher.PatchConfig(**yaml.safe_load(text))
    try:
        return [edited_source(patch) for patch in config.patches]
    except (source_patcher.PatchApplicationError, TargetMissing):
        return None


def edited_source(patch: Any) -> str:
    assert root
    lines = find_definition(patch.target, root).source.lines
    done: str = source_editor.apply_edits(source="\n".join(lines), edits=patch.edits)
    return done


if len(sys.argv) > 1:
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    answer: list[Any] = [result(*case) for case in json.loads((folder / "cases.json").read_text())]
else:
    shipped = pr_fix_toggle._PR_FIX_REVERT_YAML
    answer = [[number, text, edited(text)] for number, text in shipped.items()]
print(json.dumps(answer))
