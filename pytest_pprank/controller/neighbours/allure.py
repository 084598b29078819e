"""allure-pytest: one result per test, written here, whatever happened to the ranks.

The hooks of allure-pytest's listener are called with the reports of a test's phases. The notes of
the ranks (host.neighbours.allure) are added to its result: steps and attachments by rank.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import pytest

from pytest_pprank.controller.replay import replay_phase
from pytest_pprank.planning import plan_of
from pytest_pprank.topology import SIZE_FIXTURE

_ATTRIBUTE = "pprank_allure"
_LISTENER = "allure_listener"
_OF_A_PROCESS = ("host", "thread")
_SAID_BY_THE_TEST = ("name", "description", "descriptionHtml")


class Neighbour:
    """Calls the listener's hooks for each ranked test."""

    def __init__(self, config: pytest.Config) -> None:
        self._listener: Any = config.pluginmanager.get_plugin(_LISTENER)
        self._item: pytest.Item | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Remember the test."""
        self._item = item if plan_of(item) is not None else None
        try:
            return (yield)
        finally:
            self._item = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Pass a phase to the listener."""
        item, listener = self._item, self._listener
        if item is None or listener is None or hasattr(report, "context"):
            return
        if report.when == "setup":
            listener._cache.push(item.nodeid)
        replay_phase(item, report, listener)
        noted = getattr(report, _ATTRIBUTE, None)
        result = listener.allure_logger.get_test(listener._cache.get(item.nodeid))
        if result is None:
            return
        if report.when == "setup":
            _name_size(item, result)
        crash = getattr(report.longrepr, "reprcrash", None)
        if report.failed and crash is not None and result.statusDetails is not None:
            result.statusDetails.message = crash.message  # with the names of the ranks in front
        if noted:
            _add(result, noted)


def _name_size(item: Any, result: Any) -> None:
    """Show the number of ranks as in the test's id."""
    for parameter in result.parameters:
        if parameter.name == SIZE_FIXTURE:
            parameter.name, parameter.value = "ranks", item.callspec.params[SIZE_FIXTURE].id


def _add(result: Any, noted: Mapping[str, Mapping[str, Any]]) -> None:
    from allure_commons import model2

    first = noted[min(noted)]
    for name in _SAID_BY_THE_TEST:
        setattr(result, name, first.get(name) or getattr(result, name))
    for name, kind in (("labels", model2.Label), ("links", model2.Link)):
        here = getattr(result, name)
        more = [each for each in first.get(name, ()) if each.get("name") not in _OF_A_PROCESS]
        here += [kind(**each) for each in more if kind(**each) not in here]
    known = {SIZE_FIXTURE, *(parameter.name for parameter in result.parameters)}
    more = [each for each in first.get("parameters", ()) if each["name"] not in known]
    result.parameters += [model2.Parameter(**each) for each in more]
    for rank, own in sorted(noted.items()):
        if own.get("steps") or own.get("attachments"):
            times = {name: own.get(name) for name in ("status", "start", "stop")}
            step = {"name": f"rank {rank}", **times}
            step |= {name: own.get(name, []) for name in ("steps", "attachments")}
            result.steps.append(_step(step))


def _step(step: Mapping[str, Any]) -> Any:
    from allure_commons import model2

    given = dict(step)
    given["steps"] = [_step(each) for each in step.get("steps", ())]
    given["attachments"] = [model2.Attachment(**each) for each in step.get("attachments", ())]
    given["parameters"] = [model2.Parameter(**each) for each in step.get("parameters", ())]
    if details := step.get("statusDetails"):
        given["statusDetails"] = model2.StatusDetails(**details)
    return model2.TestStepResult(**given)
