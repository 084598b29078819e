"""Imports SGLang as the fork server does: the process's state then, and what reverts change."""

from __future__ import annotations

import json
import logging
import os
import sys

from pytest_pprank.sglang.platform import preload

preload.import_sglang("cpu")

import torch  # noqa: E402
from sglang.srt.platforms import current_platform  # noqa: E402

from pytest_pprank.sglang.reverts import NAMED  # noqa: E402
from pytest_pprank.sglang.reverts.apply import apply, edited_in  # noqa: E402
from pytest_pprank.sglang.reverts.reach import attribute, functions_behind  # noqa: E402
from pytest_pprank.sglang.static.release import package_root  # noqa: E402

process = {
    "threads": len(os.listdir("/proc/self/task")),
    "cuda": torch.cuda.is_initialized(),
    "scheduler": "sglang.srt.managers.scheduler" in sys.modules,
    "models": "sglang.srt.models.llama" in sys.modules,
    "torchvision": "torchvision" in sys.modules,
    "handlers": len(logging.root.handlers),
    "platform": type(current_platform).__name__,
}


def names(target: str) -> set[str]:
    module, cls, function = target.rsplit(".", 2)
    codes = [f.__code__ for f in functions_behind(attribute(module, (cls, function)))]
    return {name for code in codes for name in (*code.co_names, *code.co_varnames)}


root = package_root()
assert root
changed = {}
for name, revert in NAMED.items():
    (edited,) = edited_in(revert, root)
    before = names(edited.target)
    (done,) = apply(revert)
    after = names(edited.target)
    assert done.target == edited.target
    assert not done.already
    assert done.lineno > 1
    changed[name] = [f"-{n}" for n in before - after] + [f"+{n}" for n in after - before]
    (again,) = apply(revert)
    assert again.already
print(json.dumps({"process": process, "changed": changed}))
