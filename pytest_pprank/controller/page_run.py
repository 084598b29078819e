"""The page of the run as pytest's own process sees it: checks the folder first, writes it last."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

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

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """End the run in good order, with its page, when SIGTERM ends it (a cancelled CI job)."""
        with _interrupted_by_sigterm():
            return (yield)

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


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, unless somebody else handles it."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        # once: the page is being written, and whoever sends it again means it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt("SIGTERM")

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
