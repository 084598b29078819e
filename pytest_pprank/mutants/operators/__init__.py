"""The operators: one class and one line here each.

If two make the same change, the first one in this table has it: those of the field come first.
"""

from __future__ import annotations

from pytest_pprank.mutants.operators.base import Change, Operator
from pytest_pprank.mutants.operators.calls import (
    DropBroadcast,
    DropEvent,
    DropRelease,
    DropSend,
    DropWait,
    SkipOnStage,
    SwapSends,
    TurnBlocking,
)
from pytest_pprank.mutants.operators.expressions import Arithmetic, Boolean, Comparison, Constant
from pytest_pprank.mutants.operators.state import (
    ForgetField,
    HostMirror,
    IndexOffByOne,
    KeepStale,
)
from pytest_pprank.mutants.operators.statements import Branch, RemoveStatement, ReturnValue

__all__ = ["OPERATORS", "Change", "Operator"]

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        DropWait(),
        DropEvent(),
        DropBroadcast(),
        DropSend(),
        DropRelease(),
        SkipOnStage(),
        TurnBlocking(),
        SwapSends(),
        IndexOffByOne(),
        ForgetField(),
        HostMirror(),
        KeepStale(),
        Comparison(),
        Boolean(),
        Arithmetic(),
        Constant(),
        ReturnValue(),
        RemoveStatement(),
        Branch(),
    )
}
