"""Calls a plugin's hooks on the controller for a test that has run on the ranks."""

from __future__ import annotations

import builtins
import re
from typing import Any

import pytest


def replay_phase(item: pytest.Item, report: pytest.TestReport, plugin: object) -> None:
    """Call the hooks of a test's phase, and of its report, of one plugin alone.

    For plugins that wrap these hooks: what they wrap does not run here.
    """
    given = {"item": item, "nextitem": None} if report.when == "teardown" else {"item": item}
    _of(plugin, item, f"pytest_runtest_{report.when}")(**given)
    replay_report(item, report, plugin)


def replay_report(item: pytest.Item, report: pytest.TestReport, plugin: object) -> None:
    """Call `pytest_runtest_makereport` of one plugin alone, with an existing report."""
    manager = item.config.pluginmanager
    source = _Source(report)
    manager.register(source)
    try:
        tell = _of(plugin, item, "pytest_runtest_makereport", source)
        tell(item=item, call=_call(item, report))
    finally:
        manager.unregister(source)


def _of(plugin: object, item: pytest.Item, hook: str, *more: object) -> Any:
    manager = item.config.pluginmanager
    others = [each for each in manager.get_plugins() if each is not plugin and each not in more]
    return manager.subset_hook_caller(hook, others)


class _Source:
    """Implements pytest_runtest_makereport by returning an existing report."""

    def __init__(self, report: pytest.TestReport) -> None:
        self._report = report

    def pytest_runtest_makereport(self) -> pytest.TestReport:
        """Return the report."""
        return self._report


def _call(item: pytest.Item, report: pytest.TestReport) -> pytest.CallInfo[None]:
    """Create the CallInfo of a report; an exception raised on a rank has come here as text."""

    def call() -> None:
        if report.failed:
            raise _exception(item, report)

    return pytest.CallInfo.from_call(call, report.when)


def _exception(item: pytest.Item, report: pytest.TestReport) -> BaseException:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    text = re.sub(r"^\[ranks? [^]]*\] ", "", text)
    if text.startswith("assert "):
        text = f"AssertionError: {text}"  # pytest leaves the type out
    name, _, message = text.partition(": ")
    short = name.rpartition(".")[2]
    found = getattr(getattr(item, "module", None), short, None) or getattr(builtins, short, None)
    known = isinstance(found, type) and issubclass(found, BaseException)
    try:
        return _made(short, found if known else Exception, message)
    except TypeError:  # a type that needs more than a text, such as ExceptionGroup
        return _made(short, Exception, message)


def _made(name: str, base: Any, message: str) -> BaseException:
    # show the name as on the rank, without a module
    body = {"__init__": BaseException.__init__, "__module__": "builtins"}
    made: BaseException = type(name, (base,), body)(message)
    return made
