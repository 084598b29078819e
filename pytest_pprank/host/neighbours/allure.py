"""allure-pytest: a rank says what has happened in a test, and the controller writes its result.

What a test attaches is a file of a name of its own, and goes where it belongs at once.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_pprank.rank.context import current_rank

ATTRIBUTE = "pprank_allure"
"""Of a report: the result of the test, by rank. controller.neighbours.allure reads it."""

_LISTENER = "allure_listener"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let nothing but attachments be written here."""
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
    """Let the last report of a test bring all that the listener has noted."""
    report = yield
    listener: Any = item.config.pluginmanager.get_plugin(_LISTENER)
    if call.when == "teardown" and listener is not None:
        from attr import asdict

        result = listener.allure_logger.get_test(listener._cache.get(item.nodeid))
        if result is not None:
            noted = asdict(result, filter=lambda _, value: value or value is False)
            setattr(report, ATTRIBUTE, {str(current_rank().rank): noted})
    return report
