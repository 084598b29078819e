"""The page of the run as pytest's own process sees it: checks the folder first, writes it last."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pytest_pprank.controller import termination
from pytest_pprank.controller.page import FOLDER, page_folder
from pytest_pprank.options import options_of
from pytest_pprank.report.again import command_line, program
from pytest_pprank.report.page.build import About, build
from pytest_pprank.report.page.folder import INDEX, PARTS, check, prepare

_NAME = "pprank-page"


def register(config: pytest.Config) -> None:
    """Write the page of this run, if one is wanted. Raises UsageError for a wrong folder."""
    folder = page_folder(config)
    if folder is None or hasattr(config, "workerinput"):
        return
    check(folder)
    config.pluginmanager.register(PageOfRun(config, folder), _NAME)


class PageOfRun:
    """Plugin object of pytest's own process, not of workers of xdist."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._parts: Path | None = None
        self._began = time.time()
        self._said = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Make the folder; tests that are only collected leave a former page alone."""
        if not self._config.option.collectonly:
            self._parts = prepare(self._folder)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: pytest.Item | pytest.Collector) -> None:
        """Tell a worker of pytest-xdist where the page is: it writes its parts there."""
        workerinput: dict[str, object] = getattr(node, "workerinput", {})
        workerinput[FOLDER] = str(self._folder)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """Let SIGTERM (a cancelled CI job) end the run in good order, with its page."""
        termination.register(self._config)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the page: the worker groups have ended, and with them all parts are there."""
        if self._parts is None:
            return
        first, *arguments = command_line(self._config)
        about = About(
            began=self._began,
            seconds=time.time() - self._began,
            command=[*program(first), *arguments],
            end=_END.get(int(exitstatus), ""),
            selection=options_of(self._config).report_tests,
        )
        try:
            build(self._folder, self._parts, about)
        except OSError as error:
            self._said = f"pprank: the page could not be written: {error}"
            return
        finally:
            _remove(self._parts)
        self._said = f"pprank: page: {self._folder / INDEX}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where the page is."""
        if self._said:
            terminalreporter.write_line(self._said)


_END = {
    int(pytest.ExitCode.INTERRUPTED): "interrupted before all tests had run",
    int(pytest.ExitCode.INTERNAL_ERROR): "ended by an error of pytest or of a plugin",
}


def _remove(parts: Path) -> None:
    import shutil

    assert parts.name == PARTS
    shutil.rmtree(parts, ignore_errors=True)
