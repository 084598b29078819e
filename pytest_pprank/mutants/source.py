"""Functions of the installed SGLang, as their files define them; imports nothing of it."""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.sglang.reverts.place import Place, text_between
from pytest_pprank.sglang.reverts.source import FunctionNode, FunctionSource, Position, first_line

_BLOCKS = ("body", "orelse", "finalbody")


@dataclass(frozen=True)
class Function:
    """A function or method of `module`. `names`: of its classes and its own.

    `source` has the lines of the definition, `node` its syntax tree with the lines of the file.
    `paired`: names ``x`` for which the module has both attributes ``x`` and ``x_cpu``.
    """

    module: str
    names: tuple[str, ...]
    node: FunctionNode
    source: FunctionSource
    paired: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Its name inside the module, such as ``Scheduler.event_loop_pp``."""
        return ".".join(self.names)

    @property
    def target(self) -> str:
        """Its dotted name, as reverts take it."""
        return f"{self.module}.{self.name}"

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """The parent of each node of the body."""
        return {
            child: parent
            for parent in ast.walk(self.node)
            for child in ast.iter_child_nodes(parent)
        }

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the nodes around `node`, the nearest first, up to the definition."""
        while (above := self.parents.get(node)) is not None:
            yield above
            node = above

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """Return the innermost statement that `node` is, or is part of."""
        around = (node, *self.ancestors(node))
        return next(each for each in around if isinstance(each, ast.stmt))

    def block_of(self, statement: ast.stmt) -> list[ast.stmt]:
        """Return the list of statements in which `statement` stands."""
        for block in blocks_of(self.parents[statement]):
            if statement in block:
                return block
        return [statement]

    def is_elif(self, statement: ast.stmt) -> bool:
        """Return whether it is an ``elif``: a syntax tree has it as an If inside an else."""
        above = self.parents.get(statement)
        if not (isinstance(above, ast.If) and isinstance(statement, ast.If)):
            return False
        row, column = self.start(statement)
        return self.source.lines[row].startswith("elif", column)

    def start(self, node: ast.AST) -> Position:
        """Return row and column of its start, from the start of the definition."""
        return self._position(first_line(node), node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> Position:
        """Return row and column of its end."""
        return self._position(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def place(self, first: ast.AST, last: ast.AST, *, whole: bool) -> Place:
        """Return the place from the start of `first` to the end of `last`."""
        start, end = self.start(first), self.end(last)
        return Place(start, end, text_between(self.source.lines, start, end), whole)

    def _position(self, line: int, column: int) -> Position:
        row = line - self.source.numbers[0]
        # ast counts columns in UTF-8 bytes
        return row, len(self.source.lines[row].encode()[:column].decode())


def blocks_of(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield the lists of statements directly below a node."""
    for field in _BLOCKS:
        block = getattr(node, field, None)
        if isinstance(block, list) and block:
            yield block
    for case in getattr(node, "cases", ()):
        yield case.body


def functions_in(module: str, package_root: Path) -> list[Function]:
    """Return the functions and methods of a module; raises UsageError if there is no such module.

    A name that is defined twice in one scope (a property with its setter) is left out, because its
    dotted name is ambiguous.
    """
    return parse(module, importlib.util.decode_source(_file_of(module, package_root).read_bytes()))


def parse(module: str, text: str) -> list[Function]:
    """Return the functions and methods in the source of a module."""
    tree = ast.parse(text)
    lines = text.split("\n")
    paired = _paired(tree)
    return [
        Function(module, names, node, FunctionSource.of(node, lines), paired)
        for names, node in _defined(tree.body, ())
    ]


def _file_of(module: str, package_root: Path) -> Path:
    first, *rest = module.split(".")
    path = package_root.joinpath(*rest)
    if first != package_root.name:
        raise UsageError(f"{module}: not a module of {package_root.name}")
    file = path.with_suffix(".py") if rest else path / "__init__.py"
    file = file if file.is_file() else path / "__init__.py"
    if not file.is_file():
        folder = path.parent
        known = [each.stem for each in folder.glob("*.py")] if folder.is_dir() else []
        near = did_you_mean(path.name, known)
        raise UsageError(f"{module}: the installed {first} has no such module{near}")
    return file


def _defined(
    body: list[ast.stmt], names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], FunctionNode]]:
    found = list(_in_scope(body))
    times = Counter(node.name for node in found)
    for node in found:
        if times[node.name] > 1:
            continue
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, (*names, node.name))
        else:
            yield (*names, node.name), node


def _in_scope(body: list[ast.stmt]) -> Iterator[FunctionNode | ast.ClassDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
        elif not _is_for_type_checkers(node):
            for block in blocks_of(node):
                yield from _in_scope(block)


def _is_for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _paired(tree: ast.Module) -> frozenset[str]:
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    mirrors = {name.removesuffix("_cpu") for name in attributes if name.endswith("_cpu")}
    return frozenset(mirrors & attributes)
