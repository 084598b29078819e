"""Classical operators on statements: return value, removed statement, forced branch."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pytest_pprank.mutants.operators.base import Change, Operator, removed, replaced, short, yields
from pytest_pprank.mutants.source import Function


class ReturnValue(Operator):
    """A function returns None."""

    name = "return-value"
    words = "a function returns `None`"

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one return."""
        del function
        if not isinstance(node, ast.Return) or node.value is None or yields(node):
            return
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield replaced(node.value, "None", f"{short(node)} -> return None")


class RemoveStatement(Operator):
    """A statement is not there.

    An assignment to a local name stays: without it Python raises NameError, which any test sees.
    """

    name = "remove-statement"
    words = "a call, an assignment to an attribute or item, `continue`, `break` or `raise` is gone"

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the removal of one statement."""
        del function
        if isinstance(node, ast.stmt) and _is_removable(node) and not yields(node):
            yield removed(node)


class Branch(Operator):
    """A branch is always or never taken."""

    name = "branch"
    words = "the condition of an `if` is always true, or never; that of a `while` is never true"

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the changes of one condition."""
        del function
        if not isinstance(node, ast.If | ast.IfExp | ast.While):
            return
        if isinstance(node.test, ast.Constant):
            return
        values = ("False",) if isinstance(node, ast.While) else ("True", "False")
        for value in values:
            yield replaced(node.test, value, f"the condition {short(node.test)} is always {value}")


def _is_removable(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Assign):
        return all(isinstance(each, ast.Attribute | ast.Subscript) for each in node.targets)
    if isinstance(node, ast.AnnAssign):
        return node.value is not None and not isinstance(node.target, ast.Name)
    return isinstance(node, ast.AugAssign | ast.Delete | ast.Continue | ast.Break | ast.Raise)
