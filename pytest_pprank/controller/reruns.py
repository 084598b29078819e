"""pytest-rerunfailures: a ranked test that fails runs again on all ranks.

That plugin runs the phases of a test itself, in this process. It goes on to decide what runs again
and how often; only its way to run a test once is replaced by ours, while it has a ranked test.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from typing import Any

import pytest

_NAMES = ("rerunfailures", "pytest_rerunfailures")  # as installed, and as given to -p
_RUN_ONCE = "runtestprotocol"


def run(
    item: pytest.Item, nextitem: pytest.Item | None, once: Callable[[], list[pytest.TestReport]]
) -> bool:
    """Let pytest-rerunfailures run and report `item`, by `once`; False if it does not want to."""
    manager = item.config.pluginmanager
    plugin: Any = next((p for p in map(manager.get_plugin, _NAMES) if p is not None), None)
    if plugin is None:
        return False
    others = [p for p in manager.get_plugins() if p is not plugin]

    def run_once(item: pytest.Item, **_: object) -> list[pytest.TestReport]:
        reports = once()
        for report in reports:
            source = _Source(report)
            manager.register(source)
            # its own view of a report, without that of others: theirs was taken on the ranks
            tell = manager.subset_hook_caller("pytest_runtest_makereport", others)
            tell(item=item, call=_call(item, report))
            manager.unregister(source)
        return reports

    ours = getattr(plugin, _RUN_ONCE)
    setattr(plugin, _RUN_ONCE, run_once)
    try:
        return bool(plugin.pytest_runtest_protocol(item=item, nextitem=nextitem))
    finally:
        setattr(plugin, _RUN_ONCE, ours)


class _Source:
    """Answers pytest's question for a report with one that exists."""

    def __init__(self, report: pytest.TestReport) -> None:
        self._report = report

    def pytest_runtest_makereport(self) -> pytest.TestReport:
        """Return it."""
        return self._report


def _call(item: pytest.Item, report: pytest.TestReport) -> pytest.CallInfo[None]:
    """Make up the call of a report; what was raised on a rank has come here as text."""

    def call() -> None:
        if report.failed:
            raise _exception(item, report)

    return pytest.CallInfo.from_call(call, report.when)


def _exception(item: pytest.Item, report: pytest.TestReport) -> BaseException:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    text = re.sub(r"^\[ranks? [^]]*\] ", "", text)
    name, _, message = text.partition(": ")
    short = name.rpartition(".")[2]
    found = getattr(getattr(item, "module", None), short, None) or getattr(builtins, short, None)
    known = isinstance(found, type) and issubclass(found, BaseException)
    try:
        return _made(short, found if known else Exception, message)
    except TypeError:  # one that cannot be made of a text, such as an ExceptionGroup
        return _made(short, Exception, message)


def _made(name: str, base: Any, message: str) -> BaseException:
    made: BaseException = type(name, (base,), {"__init__": BaseException.__init__})(message)
    return made
