"""Determines whether a revert only changes the order of device work, or where tensors are.

Device cpu runs everything at once and in program order, so it cannot show such a bug: there a host
tensor is a device tensor, and every event has already happened. The decision is structural: if
everything about device order is removed (waits, records, streams, blocking or pinned copies, target
devices), the function is the same with and without the revert.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable

from pytest_pprank.sglang.reverts import Edited

_ORDERING = frozenset(
    {"synchronize", "wait_event", "wait_stream", "record_event", "record_stream", "record", "wait"}
)
"""Methods of streams, events and tensors whose only effect is on order."""
_MOVING = frozenset({"to", "cpu", "cuda", "pin_memory"})
_ARGUMENTS = frozenset({"non_blocking", "pin_memory", "device"})
_OF_ORDER = re.compile(r"(?:.*_)?(?:event|stream)(?:_ctx|_context)?", re.IGNORECASE)
"""Names of events and streams, such as ``d2h_event``, ``current_stream``, ``copy_stream_ctx``."""
_DEVICES = re.compile(r"(?:cpu|cuda)(?::\d+)?")


def is_of_device_order(edited: Iterable[Edited]) -> bool:
    """Return whether device cpu cannot show a bug that these edits introduce."""
    return all(_rest(each.before) == _rest(each.after) for each in edited)


def _rest(function: ast.AST) -> str:
    """Return a function without device order, in comparable form."""
    return ast.dump(_WithoutOrder().visit(copy.deepcopy(function)))


class _WithoutOrder(ast.NodeTransformer):
    """Removes statements and arguments about device order; values of that kind become None."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if _is_ordering(node.value) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        """Remove it: a ``pass`` may replace a removed statement."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        ours = _is_ordering(node.value) or all(map(_names_order, node.targets))
        return None if ours else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return node if node.body or node.orelse else None

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
        kept = [item for item in node.items if not _names_order(item.context_expr)]
        node.items = kept
        self.generic_visit(node)
        return node if kept else node.body

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(None) if _names_order(node) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Constant(None) if _names_order(node) else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _is_ordering(node) or _names_order(node):
            return ast.Constant(None)
        node.keywords = [k for k in node.keywords if not _is_of_order(k.arg or "")]
        if isinstance(node.func, ast.Attribute) and node.func.attr in _MOVING:
            node.args = [argument for argument in node.args if not _names_device(argument)]
            if not node.args and not node.keywords:
                moved: ast.AST = self.visit(node.func.value)
                return moved
        return self.generic_visit(node)


def _is_ordering(node: ast.expr) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    # handles of torch.distributed are waited for on any device
    return node.func.attr in _ORDERING and "work" not in _last_name(node.func.value)


def _names_order(node: ast.expr) -> bool:
    return _OF_ORDER.fullmatch(_last_name(node)) is not None


def _names_device(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and _DEVICES.fullmatch(node.value) is not None
    return _last_name(node).endswith("device")


def _is_of_order(argument: str) -> bool:
    return argument in _ARGUMENTS or _OF_ORDER.fullmatch(argument) is not None


def _last_name(node: ast.expr) -> str:
    """Return the last name of ``a.b.last``, ``last[i]`` and ``a.last(...)``; "" otherwise."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
