"""Rules that cut mutants which no test of behaviour can see. One function and one line each."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass

from pytest_pprank.mutants.operators.base import Change, called, last_name
from pytest_pprank.mutants.source import Function

_LOGGERS = frozenset({"logger", "logging", "log", "warnings", "_logger"})
_LOG_CALLS = re.compile(r"print|warn|log_\w+|_log\w*|maybe_log\w*|print_\w+|logger_\w+")
_METRICS = re.compile(
    r"\w*(?:metric|stats|tracing|trace_|nvtx|telemetry|prometheus)\w*|observe_\w+|record_function"
    r"|set_\w*_time|mark_\w*time|\w*_for_debug",
    re.IGNORECASE,
)
_WAITS_OF_DEVICES = frozenset({"synchronize", "wait_stream", "wait_event"})
_LAST_IN_BLOCK = ast.Return | ast.Raise | ast.Continue | ast.Break
_FOR_HUMANS = frozenset({"__repr__", "__str__", "__format__"})


@dataclass(frozen=True)
class Rule:
    """A reason for which a change has no effect that a test could see."""

    name: str
    words: str
    holds: Callable[[Change, Function], bool]


def cut_by(change: Change, function: Function) -> str:
    """Return the name of the first rule that cuts a change; "" if none does."""
    return next((rule.name for rule in RULES if rule.holds(change, function)), "")


def _around(change: Change, function: Function) -> list[ast.AST]:
    return [change.first, *function.ancestors(change.first)]


def _in_log(change: Change, function: Function) -> bool:
    return any(isinstance(n, ast.stmt) and _is_log(n) for n in _around(change, function))


def _in_metrics(change: Change, function: Function) -> bool:
    around = _around(change, function)
    inside = any(isinstance(n, ast.stmt) and _is_metric(n) for n in around)
    return inside or _METRICS.fullmatch(function.names[-1]) is not None


def _guards_only_words(change: Change, function: Function) -> bool:
    """Return whether it is in the condition of an ``if`` that only logs or counts."""
    statement = function.statement_of(change.first)
    if not isinstance(statement, ast.If) or change.whole:
        return False
    inside = (*statement.body, *statement.orelse)
    return all(_is_log(each) or _is_metric(each) or isinstance(each, ast.Pass) for each in inside)


def _is_log(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    function = statement.value.func
    owner = last_name(function.value) if isinstance(function, ast.Attribute) else ""
    return owner in _LOGGERS or _LOG_CALLS.fullmatch(called(statement.value)) is not None


def _is_metric(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return _names_metric(statement.value.func)
    if isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return all(map(_names_metric, targets))
    return isinstance(statement, ast.If) and _names_metric(statement.test)


def _names_metric(node: ast.expr) -> bool:
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    names = (getattr(node, "attr", ""), getattr(node, "id", ""))
    owner = node.value if isinstance(node, ast.Attribute) else None
    if any(_METRICS.fullmatch(name) for name in names if name):
        return True
    return owner is not None and _names_metric(owner)


def _in_assertion(change: Change, function: Function) -> bool:
    return any(isinstance(node, ast.Assert) for node in _around(change, function))


def _in_message(change: Change, function: Function) -> bool:
    around = _around(change, function)
    if any(isinstance(node, ast.JoinedStr) for node in around):
        return True
    raised = any(isinstance(node, ast.Raise) for node in around[1:])
    return raised and not change.whole


def _for_type_checkers(change: Change, function: Function) -> bool:
    around = _around(change, function)
    return any(isinstance(n, ast.If) and last_name(n.test) == "TYPE_CHECKING" for n in around) or (
        any(isinstance(n, ast.AnnAssign) and _is_in(n.annotation, around) for n in around)
    )


def _is_in(node: ast.AST, around: list[ast.AST]) -> bool:
    return any(each is node for each in around)


def _is_dead(change: Change, function: Function) -> bool:
    for node in _around(change, function):
        if not isinstance(node, ast.stmt) or node is function.node:
            continue
        block = function.block_of(node)
        if any(isinstance(each, _LAST_IN_BLOCK) for each in block[: block.index(node)]):
            return True
    return False


def _for_humans(change: Change, function: Function) -> bool:
    del change
    return function.names[-1] in _FOR_HUMANS


def _only_waits(change: Change, function: Function) -> bool:
    above = function.parents.get(change.first)
    if isinstance(above, ast.If) and above.test is change.first and not above.orelse:
        return change.text == "True" and all(map(_is_wait_of_device, above.body))
    return isinstance(above, ast.keyword) and (
        above.arg == "non_blocking" and change.text == "False"
    )


def _is_wait_of_device(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and called(value) in _WAITS_OF_DEVICES


def _ends_anyway(change: Change, function: Function) -> bool:
    """Return whether it removes a ``continue`` after which the same happens anyway.

    That is a ``continue`` at the end of a loop's body, also at the end of an ``if`` there.
    """
    node: ast.AST = change.first
    if not isinstance(node, ast.Continue):
        return False
    while isinstance(node, ast.Continue | ast.If):
        block = function.block_of(node)
        if block[-1] is not node:
            return False
        node = function.parents[node]
    return isinstance(node, ast.For | ast.While) and block is node.body


RULES = (
    Rule("logging", "calls of loggers, `print`, `warn` and `log_...`", _in_log),
    Rule(
        "metrics",
        "calls and assignments of metrics, statistics, tracing and what is only for debugging",
        _in_metrics,
    ),
    Rule("words-only", "the condition of an `if` that only logs or counts", _guards_only_words),
    Rule("assertion", "inside an `assert`", _in_assertion),
    Rule("message", "the message of an exception, and texts", _in_message),
    Rule("type-checking", "annotations, and blocks for type checkers", _for_type_checkers),
    Rule("dead-code", "after `return`, `raise`, `continue` or `break` in a block", _is_dead),
    Rule("for-humans", "`__repr__`, `__str__` and `__format__`", _for_humans),
    Rule(
        "only-waits",
        "`non_blocking=True` becomes `False`, or the device is always waited for: only slower",
        _only_waits,
    ),
    Rule("ends-anyway", "a `continue` after which the loop goes on anyway", _ends_anyway),
)
