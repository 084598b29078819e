"""pytest-rerunfailures: a ranked test that fails runs again on all ranks.

That plugin runs the phases of a test itself, in this process. It still decides what runs again and
how often; only its function that runs a test once is replaced, while it handles a ranked test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_pprank.controller.replay import replay_report

_NAMES = ("rerunfailures", "pytest_rerunfailures")  # as installed, and as given to -p
_RUN_ONCE = "runtestprotocol"


def run(
    item: pytest.Item, nextitem: pytest.Item | None, once: Callable[[], list[pytest.TestReport]]
) -> bool:
    """Let pytest-rerunfailures run and report `item`, using `once`; False if it does not."""
    manager = item.config.pluginmanager
    plugin: Any = next((p for p in map(manager.get_plugin, _NAMES) if p is not None), None)
    if plugin is None:
        return False

    def run_once(item: pytest.Item, **_: object) -> list[pytest.TestReport]:
        reports = once()
        for report in reports:
            # only this plugin's hooks: those of other plugins have run on the ranks
            replay_report(item, report, plugin)
        return reports

    ours = getattr(plugin, _RUN_ONCE)
    setattr(plugin, _RUN_ONCE, run_once)
    try:
        return bool(plugin.pytest_runtest_protocol(item=item, nextitem=nextitem))
    finally:
        setattr(plugin, _RUN_ONCE, ours)
