"""What we need of pytest that it does not promise, in one place."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest
from _pytest._code.code import ExceptionRepr as ExceptionRepr
from _pytest._code.code import ReprEntry, ReprTraceback
from _pytest._code.code import ReprFileLocation as ReprFileLocation
from _pytest._code.code import TerminalRepr as TerminalRepr

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_NONE = logging.PlaceHolder
_UNEXPECTED = "[XPASS(strict)]"


def basetemp_of(config: pytest.Config) -> Path | None:
    """Return the folder below which this run's tmp_path folders lie; None without that plugin."""
    factory: pytest.TempPathFactory | None = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else factory.getbasetemp()


def fixtures_from(module: str, node: pytest.Item | pytest.Collector) -> set[str]:
    """Return the fixtures a test uses, however indirectly, that are defined in `module`.

    A name alone says little: a project may have a fixture ``scheduler`` of its own. The last
    definition wins; one before it is used where the last asks for its own name.
    """
    info = getattr(node, "_fixtureinfo", None)
    found = set()
    for name, definitions in ({} if info is None else info.name2fixturedefs).items():
        for definition in reversed(definitions):
            if definition.func.__module__ == module:
                found.add(name)
            if name not in definition.argnames:
                break
    return found


def set_nodeid(item: pytest.Item, nodeid: str) -> None:
    """Give a test another node id: that of another pytest, with other arguments and rootdir."""
    own: Any = item
    if hasattr(own, "_id"):  # pytest 9.2
        own._id = type(own._id).parse(nodeid)
    else:
        own._nodeid = nodeid


def wants_full_tracebacks(config: pytest.Config) -> bool:
    """Whether somebody wants to see all there is: ``-vv``, or ``--full-trace``."""
    return config.get_verbosity() > 1 or bool(config.getoption("fulltrace", False))


@contextmanager
def discard_logs_on_success(config: pytest.Config) -> Iterator[None]:
    """Keep out of the report what the block logs, if it does not raise."""
    plugin = config.pluginmanager.get_plugin("logging-plugin")
    stream = getattr(getattr(plugin, "report_handler", None), "stream", None)
    before = stream.tell() if stream is not None else 0
    yield
    if stream is not None:
        stream.seek(before)
        stream.truncate()


def single_entry_traceback(lines: list[str], path: str, lineno: int, message: str) -> ReprTraceback:
    """Return a traceback of one entry: some lines, and the place that they speak of."""
    place = ReprFileLocation(path, lineno, message) if path else None
    return ReprTraceback([ReprEntry(lines, None, None, place, "long")], None, "long")


def passed_unexpectedly(report: pytest.TestReport) -> bool:
    """Whether a test passed that was marked ``xfail(strict=True)``: only its text says so."""
    return report.failed and str(report.longrepr).startswith(_UNEXPECTED)


def set_unexpected_pass_reason(report: pytest.TestReport, words: str) -> None:
    """Put other words in the place of the reason of the xfail."""
    report.longrepr = f"{_UNEXPECTED} {words}"


_OWN = frozenset(vars(pytest.TestReport("", ("", None, ""), {}, "passed", None, "call")))


def extra_attributes(report: pytest.TestReport) -> dict[str, object]:
    """Return what is in a report beside pytest's own: other plugins put it there."""
    return {name: value for name, value in vars(report).items() if name not in _OWN}


def subtests_fail_their_test() -> bool:
    """Whether a test that passes fails for its subtests: since pytest has them itself (9.0)."""
    return find_spec("_pytest.subtests") is not None


def phase_raised(report: pytest.TestReport) -> bool:
    """Whether a phase ended by a failure, be it an expected one."""
    if report.failed:
        return not passed_unexpectedly(report)
    return report.skipped and hasattr(report, "wasxfail")


def silence_terminal(config: pytest.Config) -> None:
    """Replace the terminal reporter of a rank by one that no hook reaches, writing to nowhere.

    One must exist: up to pytest 9.0 the explanation of a failed assertion asks it for a writer.
    """
    from _pytest.terminal import TerminalReporter

    manager = config.pluginmanager
    if manager.hasplugin("terminalreporter"):
        manager.unregister(name="terminalreporter")
    reporter = TerminalReporter(config, open(os.devnull, "w"))  # noqa: SIM115
    manager.register(_Unhooked(reporter), "terminalreporter")


class _Unhooked:
    """All attributes of another plugin, but none of its hooks: pluggy looks for these by dir()."""

    def __init__(self, plugin: object) -> None:
        self._plugin = plugin

    def __getattr__(self, name: str) -> object:
        if name == "_plugin":
            raise AttributeError(name)  # not yet initialised
        return getattr(self._plugin, name)


_NOT_FOR_RANKS = frozenset({"_pytest.setuponly", "_pytest.setupplan", "pytest_timeout"})
"""Modules of plugins that have nothing to do on a rank but take their time in each test. An alarm
of pytest-timeout inside a rank would also fire beside the controller's."""


def drop_plugins(config: pytest.Config) -> None:
    """Let go of plugins that are not for ranks, once they have declared options and markers."""
    manager = config.pluginmanager
    for plugin in manager.get_plugins():
        if getattr(plugin, "__name__", "") in _NOT_FOR_RANKS:
            manager.unregister(plugin)


def speed_up_log_capture() -> None:
    """Make pytest's capturing of logs cost less, where it attaches itself to many loggers.

    Since pytest-dev/pytest pull request 14375 it looks for the loggers that do not propagate, and
    attaches to each of them, six times per test: with torch and SGLang imported, a large part of
    what a small test costs. Here it attaches to the same ones at the same times. Another form of it
    than the one that is known is left alone.
    """
    from _pytest import logging as plugin

    known = {"attached_loggers", "handler", "level", "orig_level"}
    if set(getattr(plugin.catching_logs, "__slots__", ())) == known:
        plugin.catching_logs = _quick(plugin.catching_logs)  # type: ignore[misc]


def _quick(catching_logs: Any) -> Any:
    class QuickCatchingLogs(catching_logs):  # type: ignore[misc]
        """Attaches without taking logging's lock for every logger: appending needs none."""

        __slots__ = ()

        def __enter__(self) -> logging.Handler:
            handler: logging.Handler = self.handler
            if self.level is not None:
                handler.setLevel(self.level)
            root = logging.getLogger()
            others = list(root.manager.loggerDict.values())
            cut_off = [o for o in others if type(o) is not _NONE and not o.propagate]  # type: ignore[union-attr]
            self.attached_loggers += [root, *cut_off]
            for logger in self.attached_loggers:
                if handler not in logger.handlers:
                    logger.handlers.append(handler)
            if self.level is not None:
                self.orig_level = root.level  # type: ignore[misc]
                root.setLevel(min(self.orig_level, self.level))
            return handler

        def __exit__(self, *error: object) -> None:
            if self.level is not None:
                logging.getLogger().setLevel(self.orig_level)
            for logger in self.attached_loggers:
                if self.handler in logger.handlers:
                    logger.handlers.remove(self.handler)
            self.attached_loggers.clear()

    return QuickCatchingLogs


def tear_down_for(item: pytest.Item | None, session: pytest.Session) -> None:
    """Tear down what the tests before have set up and `item`, the next one, does not share."""
    session._setupstate.teardown_exact(item)


def pytest_folders() -> tuple[str, ...]:
    """Return the folders that pytest's own code lies in, and that of pluggy, which calls hooks."""
    specs = [find_spec(name) for name in ("_pytest", "pytest", "pluggy")]
    return tuple(os.path.dirname(spec.origin) for spec in specs if spec and spec.origin)


def ansi_terminal(reporter: TerminalReporter) -> TextIO | None:
    """Return the file a terminal reporter writes to, if that is a terminal that obeys escapes."""
    file: TextIO | None = getattr(getattr(reporter, "_tw", None), "_file", None)
    escapes = os.environ.get("TERM", "dumb") != "dumb"
    return file if file is not None and escapes and file.isatty() else None


def columns_left(reporter: TerminalReporter) -> int:
    """Return how many columns are free behind what a terminal reporter has written of a line."""
    writer = reporter._tw
    return int(writer.fullwidth - writer.width_of_current_line)
