"""How requests end: the finish reason, and checks that all is right when none is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Result


def end_of(result: Result) -> str:
    """Return the type of a request's finish reason; fails if the request is not finished."""
    __tracebackhide__ = True
    assert result.finish_reason is not None, f"{result.rid} is not finished"
    return str(result.finish_reason["type"])


def settle(driver: Engine, *aborted: str) -> None:
    """Run until nothing is under way; check that just these requests end as aborted (on decode),
    that all others have their tokens, and that nothing is held.
    """
    driver.drain()
    check_ends(driver, *aborted)


def check_ends(driver: Engine, *aborted: str) -> None:
    """As `settle`, with nothing under way."""
    ends = {rid: end_of(result) for rid, result in driver.results.items()}
    assert ends == {rid: "abort" if rid in aborted else "length" for rid in ends}
    others = [result for rid, result in driver.results.items() if rid not in aborted]
    if others:
        assert_tokens_equal_reference(others)
    assert_kv_balanced(driver.scheduler, allow_failed_rooms=True)


def settle_and_leave(disagg: Disagg, *aborted: str) -> None:
    """As `settle`, with the event loops left before the memory is looked at."""
    disagg.drain()
    disagg.leave()
    check_ends(disagg, *aborted)
