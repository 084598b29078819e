"""Warns about plain tests that initialise a process group in pytest's own process.

Such a group has one rank, so a passing test shows nothing about several ranks. The controller's
process never imports torch itself. If a test has not imported torch either, there is nothing to
check.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank.controller.warnings import WarningRelay
from pytest_pprank.options import options_of
from pytest_pprank.planning import plan_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

_C10D = "torch.distributed.distributed_c10d"
_BEGINS = "_new_process_group_helper"
"""The function that `init_process_group` calls, whatever name a test imports that by.

It is also called for new groups.
"""


_NAME = "pprank-outside-ranks"


def register(config: pytest.Config) -> None:
    """Watch the plain tests of this run; later calls do nothing."""
    if not config.pluginmanager.hasplugin(_NAME):
        config.pluginmanager.register(OutsideRanks(config), _NAME)


class OutsideRanks:
    """Plugin object of the controller: watches the tests that are not ranked."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._alone: list[pytest.Item] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note a test that initialises a default group of one rank."""
        if plan_of(item) is not None:
            return (yield)
        sizes: list[int] = []
        with _noting_sizes(sizes):
            result = yield
        if 1 in sizes:
            self._alone.append(item)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Warn about the first such test, with the number of others."""
        if self._alone:
            WarningRelay(self._config).warn(self._text(), self._alone[0])
        return (yield)

    def _text(self) -> str:
        more = len(self._alone) - 1
        others = f" (and {more} other test{'s' * (more > 1)})" if more else ""
        mark = "pprank" if options_of(self._config).sizes else "pprank(pp=2)"
        return (
            f"pprank: this test{others} began a torch.distributed group of one rank, in pytest's "
            f"own process: it says nothing about several ranks. To run it on ranks, mark it, its "
            f"class or its module @pytest.mark.{mark}, and let init_process_group take rank and "
            "world size from the environment (init_method='env://', no rank=, no world_size=), or "
            "use the fixture 'process_group' in its place"
        )


@contextmanager
def _noting_sizes(sizes: list[int]) -> Iterator[None]:
    """Append the sizes of default groups that are initialised inside the block to `sizes`."""
    module = sys.modules.get(_C10D)
    original = getattr(module, _BEGINS, None)
    if module is None or original is None:
        yield
        sizes += _size_now()
        return
    wrapped = _noting(original, sizes)
    setattr(module, _BEGINS, wrapped)
    try:
        yield
    finally:
        if getattr(module, _BEGINS, None) is wrapped:
            setattr(module, _BEGINS, original)


def _noting(
    original: Callable[..., tuple[ProcessGroup, Store]], sizes: list[int]
) -> Callable[..., tuple[ProcessGroup, Store]]:
    @functools.wraps(original)
    def helper(*args: object, **kwargs: object) -> tuple[ProcessGroup, Store]:
        __tracebackhide__ = True
        begun = original(*args, **kwargs)
        members = args[2] if len(args) > 2 else kwargs.get("global_ranks_in_group")
        if members == []:  # for the default group torch passes no members
            sizes.append(begun[0].size())
        return begun

    return helper


def _size_now() -> list[int]:
    """Return the size of the default group that a test has left, in a list; empty without one."""
    module: Any = sys.modules.get(_C10D)
    if module is None or not module.is_initialized():
        return []
    return [module.get_world_size()]
