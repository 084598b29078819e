"""`Any` in an annotation says nothing: it is rare, except for objects of SGLang and torch."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest_pprank

PACKAGE = Path(pytest_pprank.__file__).parent
APART = ("sglang/compat", "devices/sim")
"""Folders that read SGLang's objects of each release, or replace parts of torch."""
MOST = 150


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from filter(None, [node.returns])
        elif isinstance(node, ast.arg | ast.AnnAssign):
            yield from filter(None, [node.annotation])


def _count(annotation: ast.expr) -> int:
    names = [node for node in ast.walk(annotation) if isinstance(node, ast.Name)]
    return sum(name.id == "Any" for name in names)


def _by_file(package: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for file in sorted(package.rglob("*.py")):
        name = str(file.relative_to(package))
        if not name.startswith(APART):
            found[name] = sum(map(_count, _annotations(ast.parse(file.read_text()))))
    return +found


def test_any_is_rare() -> None:
    found = _by_file(PACKAGE)
    most = ", ".join(f"{file} {count}" for file, count in found.most_common(8))
    assert found.total() < MOST, f"most are in {most}"


def test_each_kind_of_annotation_is_counted(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "async def f(a: Any, *b: list[Any], c: int, **d: Any) -> dict[str, Any]:\n"
        "    x: Any = a\n"
        "    Any(x)\n"
    )
    assert _by_file(tmp_path) == {"one.py": 5}
