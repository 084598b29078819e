"""The finish reason of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_pprank import Result


def end_of(result: Result) -> str:
    """Return the type of a request's finish reason; fails if the request is not finished."""
    __tracebackhide__ = True
    assert result.finish_reason is not None, f"{result.rid} is not finished"
    return str(result.finish_reason["type"])
