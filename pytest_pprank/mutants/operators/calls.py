"""Operators of the field on calls: one that waits, sends, broadcasts or frees is not made."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from pytest_pprank.mutants.operators.base import Change, Operator, called, removed, replaced, short
from pytest_pprank.mutants.source import Function

WAITS = r"wait|wait_event|wait_stream|synchronize|barrier|_pp_commit\w*work|join"
EVENTS = r"record|record_event|record_stream"
BROADCASTS = r"\w*broadcast\w*|all_reduce|all_gather\w*|\w*consensus\w*|\w*poll_and_all_reduce\w*"
SENDS = r"_?(?:pp_)?i?send\w*|_pp_\w*send\w*|put|put_nowait|publish\w*"
RELEASES = r"free\w*|_?release\w*|\w*_free\w*|dec_lock_ref|evict\w*|clear|\w*_release\w*"
"""Names of methods, as regular expressions: one table for all operators of this module."""
_ALL = re.compile("|".join((WAITS, EVENTS, BROADCASTS, SENDS, RELEASES)))
_TURNED = frozenset({"non_blocking", "async_send", "async_op", "blocking", "block"})
_ON_STAGE = "__import__('pytest_pprank.rank.context', fromlist=['current_rank']).current_rank()"


class _Dropped(Operator):
    """Calls of some methods are not made; if the result is used, it is the first argument."""

    field = True
    _names: re.Pattern[str]

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the removal of one call."""
        del function
        if isinstance(node, ast.Expr) and self._names.fullmatch(called(node.value)):
            yield removed(node)
        elif isinstance(node, ast.Assign) and self._names.fullmatch(called(node.value)):
            call = node.value
            assert isinstance(call, ast.Call)
            given = {ast.unparse(argument) for argument in call.args}
            if ast.unparse(node.targets[0]) in given:
                yield removed(node)


class DropWait(_Dropped):
    """Nothing waits for an event, a stream, a handle or a thread."""

    name = "drop-wait"
    words = "no wait for an event, a stream, a handle of a send or a thread"
    _names = re.compile(WAITS)


class DropEvent(_Dropped):
    """An event is not recorded."""

    name = "drop-event"
    words = "an event or the use of a stream is not recorded"
    _names = re.compile(EVENTS)


class DropBroadcast(_Dropped):
    """Ranks do not agree on a value."""

    name = "drop-broadcast"
    words = "no broadcast, all-reduce or consensus of ranks"
    _names = re.compile(BROADCASTS)


class DropSend(_Dropped):
    """A message is not sent."""

    name = "drop-send"
    words = "a message is not sent, or not put into a queue"
    _names = re.compile(SENDS)


class DropRelease(_Dropped):
    """Something is not freed."""

    name = "drop-release"
    words = "KV slots, rows, locks or other things are not freed"
    _names = re.compile(RELEASES)


class SkipOnStage(Operator):
    """One pipeline stage does not make a call that all others make."""

    name = "skip-on-stage"
    words = "the first pipeline stage leaves out a wait, a send, a broadcast or a release"
    field = True

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one call."""
        del function
        if isinstance(node, ast.Expr) and _ALL.fullmatch(called(node.value)):
            text = f"if {_ON_STAGE}.stage != 0:\n    {ast.unparse(node)}"
            words = f"not on the first stage: {short(node)}"
            yield Change(node, node, text, words, whole=True)


class TurnBlocking(Operator):
    """What does not wait waits, and the other way round."""

    name = "turn-blocking"
    words = "`non_blocking=`, `async_send=`, `async_op=` or `blocking=` is turned"
    field = True

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of one argument."""
        if not isinstance(node, ast.keyword) or node.arg not in _TURNED:
            return
        call = function.parents[node]
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
            turned = not node.value.value
            yield replaced(node.value, str(turned), f"{node.arg}={turned} in {short(call)}")


class SwapSends(Operator):
    """Two messages are sent in the other order."""

    name = "swap-sends"
    words = "two neighbouring sends change places"
    field = True
    _names = re.compile(f"{SENDS}|{BROADCASTS}")

    def changes(self, node: ast.AST, function: Function) -> Iterator[Change]:
        """Yield the change of this send and the statement after it, if that sends, too."""
        if not isinstance(node, ast.Expr | ast.Assign):
            return
        block = function.block_of(node)
        following = block[block.index(node) + 1 :][:1]
        if following and all(self._sends(each) for each in (node, *following)):
            other = following[0]
            text = f"{ast.unparse(other)}\n{ast.unparse(node)}"
            words = f"in the other order: {short(node, 40)}; {short(other, 40)}"
            yield Change(node, other, text, words, whole=True)

    def _sends(self, statement: ast.stmt) -> bool:
        value = getattr(statement, "value", None)
        return self._names.fullmatch(called(value)) is not None
