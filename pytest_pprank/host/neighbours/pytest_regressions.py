"""pytest-regressions: the ranks compare with its files, and write them, one after the other.

The first rank writes a missing file, and fails as without ranks; the others compare with that file.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
from filelock import FileLock

from pytest_pprank.rank.context import current_rank

_NAME = "perform_regression_check"


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Put a lock of this group around each check, in all modules that have imported it."""
    from pytest_regressions import common, data_regression, file_regression

    check = getattr(common, _NAME)
    lock = FileLock(current_rank().workdir / "regressions.lock")

    @functools.wraps(check)
    def one_at_a_time(*args: object, **kwargs: object) -> object:
        __tracebackhide__ = True
        with lock:
            return check(*args, **kwargs)

    for module in {common, data_regression, file_regression, *_loaded()}:
        if getattr(module, _NAME, None) is check:
            setattr(module, _NAME, one_at_a_time)


def _loaded() -> list[Any]:
    return [module for name, module in sys.modules.items() if name.startswith("pytest_regressions")]
