"""What an operator is: it proposes changes of single nodes of a function's syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pytest_pprank.mutants.source import Function


@dataclass(frozen=True)
class Change:
    """The nodes from `first` to `last` become `text`; `whole`: they are complete statements.

    `words` says what is wrong then. An expression in `text` has the parentheses that it needs.
    """

    first: ast.AST
    last: ast.AST
    text: str
    words: str
    whole: bool = False


class Operator:
    """A kind of breakage. `words` describes it in tables; `field`: it is not a classical one."""

    name: ClassVar[str]
    words: ClassVar[str]
    field: ClassVar[bool] = False

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the changes of this kind at one node of the body."""
        raise NotImplementedError


def replaced(node: ast.AST, text: str, words: str) -> Change:
    """Return the change of one expression, in parentheses unless it is one word."""
    return Change(node, node, text if text.isidentifier() else f"({text})", words)


def removed(statement: ast.stmt, words: str = "") -> Change:
    """Return the removal of one statement."""
    words = words or f"removed: {short(statement)}"
    return Change(statement, statement, "pass", words, whole=True)


def short(node: ast.AST, most: int = 70) -> str:
    """Return the code of a node in one line; of a block, its header."""
    if isinstance(node, ast.If | ast.While):
        node = node.test
    elif isinstance(node, ast.For | ast.AsyncFor):
        node = node.iter
    elif isinstance(node, ast.With | ast.AsyncWith):
        node = node.items[0].context_expr
    elif hasattr(node, "body") and isinstance(node, ast.stmt):
        return type(node).__name__.lower()
    line = " ".join(ast.unparse(node).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def called(node: ast.AST | None) -> str:
    """Return the last name of what a call calls: ``send`` for ``self.group.send(x)``; else ""."""
    if isinstance(node, ast.Await):
        node = node.value
    return last_name(node.func) if isinstance(node, ast.Call) else ""


def last_name(node: ast.AST) -> str:
    """Return the last name of ``a.b`` and ``b``; else ""."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def yields(node: ast.AST) -> bool:
    """Return whether it has a ``yield``: without it a generator would be a plain function."""
    return any(isinstance(each, ast.Yield | ast.YieldFrom | ast.Await) for each in ast.walk(node))
