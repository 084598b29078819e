"""How a request has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_pprank import Result


def end_of(result: Result) -> str:
    """Return SGLang's word for how a request has ended; fails where it has not ended."""
    __tracebackhide__ = True
    assert result.finish_reason is not None, f"{result.rid} is not finished"
    return str(result.finish_reason["type"])
