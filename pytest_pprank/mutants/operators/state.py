"""Operators of the field on state: indices, fields of batches, host mirrors, stale values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from pytest_pprank.mutants.operators.base import (
    Change,
    Operator,
    last_name,
    removed,
    replaced,
    short,
)
from pytest_pprank.mutants.source import Function

_INDEX = re.compile(
    r"(?:\w*_)?(?:mb_id|mb_idx|microbatch_id|pp_rank|stage|stage_id|layer|layer_id|slot)"
    r"|(?:start|end)_layer|pp_size"
)
_OF_BATCHES = re.compile(r"_*(?:filter|merge|copy|mix|snapshot|clone)\w*|\w*_(?:copy|snapshot)\w*")
_FEW = 3


class IndexOffByOne(Operator):
    """The index of a stage, layer or microbatch is that of its neighbour."""

    name = "index-off-by-one"
    words = "the index of a stage, layer or microbatch is off by one"
    field = True

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one use: one less in brackets (-1 is the last one), else one more."""
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            return
        above = function.parents.get(node)
        if not _INDEX.fullmatch(last_name(node)) or isinstance(above, ast.Attribute):
            return
        in_brackets = isinstance(above, ast.Subscript) and above.slice is node
        text = f"{ast.unparse(node)} {'-' if in_brackets else '+'} 1"
        words = f"{short(node)} -> {text} in {short(function.statement_of(node))}"
        yield replaced(node, text, words)


class ForgetField(Operator):
    """Filtering, merging or copying a batch leaves one of its fields out."""

    name = "forget-field"
    words = "filter, merge or copy of a batch leaves one field out"
    field = True

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one field: an assignment, or an argument of a constructor."""
        if not _OF_BATCHES.fullmatch(function.names[-1]):
            return
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if all(isinstance(each, ast.Attribute) for each in targets):
                yield removed(node, f"field left out: {short(node)}")
        elif isinstance(node, ast.Call) and last_name(node.func)[:1].isupper():
            yield from _without_arguments(node)


class HostMirror(Operator):
    """The mirror on the host is used for the tensor on the device, or the other way round."""

    name = "host-mirror"
    words = "the host's mirror `x_cpu` is used for the device tensor `x`, or back"
    field = True

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one read."""
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            return
        if node.attr.removesuffix("_cpu") not in function.paired:
            return
        here = node.attr
        other = here.removesuffix("_cpu") if here.endswith("_cpu") else f"{here}_cpu"
        text = f"{ast.unparse(node.value)}.{other}"
        words = f"{short(node)} -> {text} in {short(function.statement_of(node))}"
        yield replaced(node, text, words)


class KeepStale(Operator):
    """A value that is to be reset stays."""

    name = "keep-stale"
    words = "an attribute or item is not reset to `None`, zero, `False` or empty"
    field = True

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the removal of one reset; first values in ``__init__`` are none."""
        if not isinstance(node, ast.Assign) or "init" in function.names[-1]:
            return
        kept = all(isinstance(each, ast.Attribute | ast.Subscript) for each in node.targets)
        if kept and _is_empty(node.value):
            yield removed(node, f"stays as it was: {short(node)}")


def _without_arguments(call: ast.Call) -> Iterator[Change]:
    named = [keyword for keyword in call.keywords if keyword.arg]
    if len(named) < _FEW:
        return
    for left_out in named:
        kept = [keyword for keyword in call.keywords if keyword is not left_out]
        text = ast.unparse(ast.Call(call.func, call.args, kept))
        yield replaced(call, text, f"left out: {short(left_out)} of {last_name(call.func)}(...)")


def _is_empty(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return not value.value
    if isinstance(value, ast.List | ast.Tuple):
        return not value.elts
    return isinstance(value, ast.Dict) and not value.keys
