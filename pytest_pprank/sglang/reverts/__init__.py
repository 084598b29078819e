"""Runs SGLang with one of its fixes reverted, to prove that a test then fails.

A revert is registered by name (`named`) or read from a YAML file (`yaml_file`). The controller
resolves it and checks it on SGLang's source files. Each worker applies it after SGLang is imported
and before SGLang is used. Imports neither torch nor SGLang.
"""

from __future__ import annotations

import re
from pathlib import Path

from pytest_pprank.errors import UsageError, did_you_mean

from .model import Applied, Edit, Edited, Patch, Revert
from .named import NAMED
from .yaml_file import load

__all__ = ["NAMED", "Applied", "Edit", "Edited", "Patch", "Revert", "resolve"]

_PR = re.compile(r"(?:pr|#)?[-_ #]*(\d+)", re.IGNORECASE)


def resolve(spec: str) -> Revert:
    """Return the revert that ``--pprank-revert`` names: a registered name or a YAML file.

    A registered name is a PR number, also written ``pr-26883`` or ``#26883``. Raises
    `UsageError` for an unknown name, and for a file that cannot be read or used.
    """
    number = _PR.fullmatch(spec.strip())
    name = number[1] if number else spec.strip()
    if name in NAMED:
        return NAMED[name]
    path = Path(spec)
    if path.is_file() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return load(path)
    raise UsageError(
        f"--pprank-revert: unknown revert {spec!r}{did_you_mean(name, NAMED)}; "
        f"known: {', '.join(NAMED)}; or give the path of a YAML file"
    )
