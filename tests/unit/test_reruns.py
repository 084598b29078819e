"""How pytest-rerunfailures is made to run a test on ranks, with a stand-in for that plugin."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from pytest_pprank.controller import reruns


class Rerunner:
    """Does what pytest-rerunfailures does: runs once by its global, checks each report."""

    def __init__(self, wants: bool = True) -> None:
        self.wants = wants
        self.runtestprotocol: Any = "its own"
        self.seen: list[tuple[pytest.TestReport, pytest.CallInfo[None]]] = []
        self.reports: list[pytest.TestReport] = []

    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if self.wants:
            self.reports = self.runtestprotocol(item, nextitem=nextitem, log=False)
        return self.wants or None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self.seen.append((report, call))
        return report


@pytest.fixture
def item(request: pytest.FixtureRequest) -> Iterator[pytest.Item]:
    # the item of the running test, in a session that must not load our plugin
    node = request.node
    yield node
    plugin = node.config.pluginmanager.get_plugin("pytest_rerunfailures")
    if isinstance(plugin, Rerunner):
        node.config.pluginmanager.unregister(plugin)


@pytest.fixture
def rerunner(item: pytest.Item) -> Rerunner:
    if item.config.pluginmanager.hasplugin("rerunfailures"):
        pytest.skip("the real one is here")
    plugin = Rerunner()
    item.config.pluginmanager.register(plugin, "pytest_rerunfailures")
    return plugin


def failed(text: str) -> pytest.TestReport:
    return pytest.TestReport("id", ("file", 1, "test"), {}, "failed", text, "call")


def passed() -> pytest.TestReport:
    return pytest.TestReport("id", ("file", 1, "test"), {}, "passed", None, "call")


def test_without_the_plugin(item: pytest.Item) -> None:
    if any(map(item.config.pluginmanager.hasplugin, ("rerunfailures", "pytest_rerunfailures"))):
        pytest.skip("the real one is here")
    assert reruns.run(item, None, list) is False


@pytest.mark.usefixtures("rerunner")
def test_runs_by_what_was_given_and_gives_its_own_back(
    item: pytest.Item, rerunner: Rerunner
) -> None:
    reports = [passed()]
    assert reruns.run(item, None, lambda: reports) is True
    assert rerunner.reports == reports
    assert rerunner.runtestprotocol == "its own"


def test_not_interested(item: pytest.Item, rerunner: Rerunner) -> None:
    rerunner.wants = False
    assert reruns.run(item, None, lambda: pytest.fail("must not run")) is False


class OwnError(Exception):
    def __init__(self, left: str, right: str) -> None:
        super().__init__(left, right)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("ValueError: bad: worse", ValueError, "bad: worse"),
        ("[rank 1] ValueError: bad", ValueError, "bad"),
        ("[ranks 0,1] some.where.OwnError: bad", OwnError, "bad"),
        ("rank died: rank 1 died in call", Exception, "rank 1 died in call"),
        ("UnicodeDecodeError: bad", UnicodeDecodeError, "bad"),
    ],
)
def test_what_was_raised_is_made_up_from_text(
    item: pytest.Item, rerunner: Rerunner, text: str, kind: type[Exception], message: str
) -> None:
    reruns.run(item, None, lambda: [failed(text)])
    report, call = rerunner.seen[-1]  # it also sees this test itself
    assert report.longrepr == text
    assert call.when == "call"
    assert call.excinfo
    assert isinstance(call.excinfo.value, kind)
    assert BaseException.__str__(call.excinfo.value) == message
    assert type(call.excinfo.value).__name__ == text.split("] ")[-1].split(": ")[0].split(".")[-1]


def test_passed_report_has_no_exception(item: pytest.Item, rerunner: Rerunner) -> None:
    reruns.run(item, None, lambda: [passed()])
    _, call = rerunner.seen[-1]
    assert call.excinfo is None
