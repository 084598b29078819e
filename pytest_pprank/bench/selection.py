"""The tests of a measured run: those given after ``--``, else the stock suite."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest_pprank

SUITE = "pytest_pprank.suite"
_ROOT = Path(pytest_pprank.__file__).parents[1]
"""The folder that contains the package, and so the suite."""
_TAKE_A_VALUE = ("-k", "-m", "-p", "-c", "-o", "-W", "-n", "-r", "--rootdir", "--confcutdir")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


@dataclass(frozen=True)
class Selection:
    """`tests`: as pytest takes them after ``--pyargs``, paths absolute. `others`: its options.

    `rootdir`: ranks and controller use the same test ids only below it. Without it, pytest would
    also take the path of a revert into account.
    """

    tests: tuple[str, ...]
    others: tuple[str, ...]
    rootdir: Path


def selection_of(arguments: Sequence[str]) -> Selection:
    """Separate the tests among pytest's `arguments` from its options.

    A test is an existing path, relative to the current folder, or a dotted module that can be
    found; either may be followed by ``::name``.
    """
    tests, others, folders = [], [], []
    for before, argument in zip(("", *arguments), arguments, strict=False):
        name, colons, inside = argument.partition("::")
        path = Path(name).absolute()
        if before in _TAKE_A_VALUE or argument.startswith("-") or not name:
            others.append(argument)
        elif path.exists():
            tests.append(f"{path}{colons}{inside}")
            folders.append(path if path.is_dir() else path.parent)
        elif _MODULE.fullmatch(name) and (where := list(_folders_of(name))):
            tests.append(argument)
            folders += where
        else:
            others.append(argument)
    if not tests:
        return Selection((SUITE,), tuple(others), _ROOT)
    return Selection(tuple(tests), tuple(others), Path(os.path.commonpath(folders)))


def _folders_of(module: str) -> Iterator[Path]:
    try:
        spec = find_spec(module)
    except ImportError:
        return
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
