"""allure-pytest: a rank reports what has happened in a test, and the controller writes the result.

Attachments are files with unique names and are written to their final place by the rank.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_pprank.rank.context import current_rank

ATTRIBUTE = "pprank_allure"
"""Attribute of a report: the test's result, by rank. controller.neighbours.allure reads it."""

_LISTENER = "allure_listener"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Write nothing but attachments on this rank."""
    config = session.config
    if not config.pluginmanager.hasplugin(_LISTENER):
        return
    from allure_commons import plugin_manager
    from allure_commons.logger import AllureFileLogger

    for plugin in plugin_manager.get_plugins():
        if isinstance(plugin, AllureFileLogger):
            plugin._report_item = lambda _: None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the listener's notes to the last report of a test."""
    report = yield
    listener: Any = item.config.pluginmanager.get_plugin(_LISTENER)
    if call.when == "teardown" and listener is not None:
        from attr import asdict

        result = listener.allure_logger.get_test(listener._cache.get(item.nodeid))
        if result is not None:
            noted = asdict(result, filter=lambda _, value: value or value is False)
            setattr(report, ATTRIBUTE, {str(current_rank().rank): noted})
    return report
