"""Classical operators on expressions: comparison, boolean, arithmetic, constant."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

from pytest_pprank.mutants.operators.base import Change, Operator, replaced, short
from pytest_pprank.mutants.source import Function

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
"""What a comparison becomes: its opposite, or for `<` and its like the one that also has equals."""
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


class Comparison(Operator):
    """One comparison becomes another one."""

    name = "comparison"
    words = "a comparison becomes its opposite, or `<` becomes `<=`"

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield one change for each comparison of a chain."""
        del function
        if not isinstance(node, ast.Compare):
            return
        for place, op in enumerate(node.ops):
            changed = copy.deepcopy(node)
            changed.ops[place] = _COMPARISONS[type(op)]()
            yield replaced(node, ast.unparse(changed), f"{short(node)} -> {short(changed)}")


class Boolean(Operator):
    """``and`` becomes ``or`` and back; a ``not`` goes."""

    name = "boolean"
    words = "`and` becomes `or`, `or` becomes `and`, `not x` becomes `x`"

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one boolean expression."""
        del function
        changed: ast.expr | None = None
        if isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            changed = ast.BoolOp(other, node.values)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            changed = node.operand
        if changed is not None:
            yield replaced(node, ast.unparse(changed), f"{short(node)} -> {short(changed)}")


class Arithmetic(Operator):
    """``+`` becomes ``-``, also in ``+=``."""

    name = "arithmetic"
    words = "`+` and `-`, `*` and `//`, `%` and `//`, `|` and `&` change places"

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one operation on what is not a text."""
        del function
        if not isinstance(node, ast.BinOp | ast.AugAssign) or type(node.op) not in _ARITHMETIC:
            return
        operands = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
        if any(isinstance(each, ast.JoinedStr) or _is_text(each) for each in operands):
            return
        changed = copy.deepcopy(node)
        changed.op = _ARITHMETIC[type(node.op)]()
        words = f"{short(node)} -> {short(changed)}"
        if isinstance(node, ast.AugAssign):
            yield Change(node, node, ast.unparse(changed), words, whole=True)
        else:
            yield replaced(node, ast.unparse(changed), words)


class Constant(Operator):
    """A number is one more, True is False."""

    name = "constant"
    words = "a whole number is one more, `True` is `False` and back"

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one constant."""
        if not isinstance(node, ast.Constant) or type(node.value) not in (int, bool):
            return
        if isinstance(function.parents.get(node), ast.MatchValue):
            return
        value = node.value
        assert isinstance(value, int)
        changed = not value if isinstance(value, bool) else value + 1
        words = f"{value} -> {changed} in {short(function.statement_of(node))}"
        yield replaced(node, repr(changed), words)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
