"""Everything this plugin uses of pytest that is not pytest's public API."""

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
    """Return the parent folder of this run's tmp_path folders; None without the tmpdir plugin."""
    factory: pytest.TempPathFactory | None = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else factory.getbasetemp()


def fixtures_from(module: str, node: pytest.Item | pytest.Collector) -> set[str]:
    """Return the names of a test's fixtures, direct and indirect, that `module` defines.

    Names alone are not enough: a project may define its own fixture ``scheduler``. The last
    definition of a name wins. An earlier definition is used only if the later one requests its own
    name.
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
    """Set a test's node id to that of another pytest process, with other arguments and rootdir."""
    own: Any = item
    if hasattr(own, "_id"):  # pytest 9.2
        own._id = type(own._id).parse(nodeid)
    else:
        own._nodeid = nodeid


def wants_full_tracebacks(config: pytest.Config) -> bool:
    """Return whether ``-vv`` or ``--full-trace`` asks for full tracebacks."""
    return config.get_verbosity() > 1 or bool(config.getoption("fulltrace", False))


@contextmanager
def discard_logs_on_success(config: pytest.Config) -> Iterator[None]:
    """Drop the block's log records from the test report unless the block raises, or with ``-v``."""
    if config.get_verbosity() > 0:
        yield
        return
    plugin = config.pluginmanager.get_plugin("logging-plugin")
    stream = getattr(getattr(plugin, "report_handler", None), "stream", None)
    before = stream.tell() if stream is not None else 0
    yield
    if stream is not None:
        stream.seek(before)
        stream.truncate()


def single_entry_traceback(lines: list[str], path: str, lineno: int, message: str) -> ReprTraceback:
    """Return a traceback with one entry: `lines`, and the location they are about."""
    place = ReprFileLocation(path, lineno, message) if path else None
    return ReprTraceback([ReprEntry(lines, None, None, place, "long")], None, "long")


def passed_unexpectedly(report: pytest.TestReport) -> bool:
    """Return whether a test marked ``xfail(strict=True)`` passed: only the text shows it."""
    return report.failed and str(report.longrepr).startswith(_UNEXPECTED)


def set_unexpected_pass_reason(report: pytest.TestReport, words: str) -> None:
    """Replace the reason of the xfail in the report of an unexpected pass."""
    report.longrepr = f"{_UNEXPECTED} {words}"


def add_to_section(longrepr: object, name: str, text: str) -> bool:
    """Append a line to a failure's section `name`, which becomes the last one.

    Returns False for a failure without sections.
    """
    if not isinstance(longrepr, ExceptionRepr):
        return False
    before = [content for title, content, _ in longrepr.sections if title == name]
    longrepr.sections[:] = [section for section in longrepr.sections if section[0] != name]
    longrepr.addsection(name, "\n".join([*before, text]))
    return True


_OWN = frozenset(vars(pytest.TestReport("", ("", None, ""), {}, "passed", None, "call")))


def extra_attributes(report: pytest.TestReport) -> dict[str, object]:
    """Return the attributes of a report that other plugins have added to pytest's own."""
    return {name: value for name, value in vars(report).items() if name not in _OWN}


def subtests_fail_their_test() -> bool:
    """Return whether a failed subtest fails its test, as with pytest's own subtests (9.0)."""
    return find_spec("_pytest.subtests") is not None


def phase_raised(report: pytest.TestReport) -> bool:
    """Return whether a phase ended with an exception, expected (xfail) or not."""
    if report.failed:
        return not passed_unexpectedly(report)
    return report.skipped and hasattr(report, "wasxfail")


def silence_terminal(config: pytest.Config) -> None:
    """Replace a rank's terminal reporter by one without hooks that writes to the null device.

    A terminal reporter must be registered: up to pytest 9.0 assertion explanations ask for its
    writer.
    """
    from _pytest.terminal import TerminalReporter

    manager = config.pluginmanager
    if manager.hasplugin("terminalreporter"):
        manager.unregister(name="terminalreporter")
    reporter = TerminalReporter(config, open(os.devnull, "w"))  # noqa: SIM115
    manager.register(_Unhooked(reporter), "terminalreporter")


class _Unhooked:
    """Forwards all attributes of another plugin but hides its hooks: pluggy finds them by dir()."""

    def __init__(self, plugin: object) -> None:
        self._plugin = plugin

    def __getattr__(self, name: str) -> object:
        if name == "_plugin":
            raise AttributeError(name)  # before __init__
        return getattr(self._plugin, name)


_NOT_FOR_RANKS = frozenset({"_pytest.setuponly", "_pytest.setupplan", "pytest_timeout"})
"""Modules of plugins that do nothing useful on a rank and cost time in each test.

The alarm of pytest-timeout would also fire inside the rank, in addition to the controller's
timeout.
"""


def drop_plugins(config: pytest.Config) -> None:
    """Unregister plugins that are not for ranks, after they have declared options and markers."""
    manager = config.pluginmanager
    for plugin in manager.get_plugins():
        if getattr(plugin, "__name__", "") in _NOT_FOR_RANKS:
            manager.unregister(plugin)


def speed_up_log_capture() -> None:
    """Make pytest's log capture faster where many loggers do not propagate.

    Since pytest-dev/pytest pull request 14375 pytest attaches a handler to each logger that does
    not propagate, six times per test. With torch and SGLang imported, that takes a large part of a
    small test's time. The replacement attaches to the same loggers at the same times. An unknown
    version of `catching_logs` is left unchanged.
    """
    from _pytest import logging as plugin

    known = {"attached_loggers", "handler", "level", "orig_level"}
    if set(getattr(plugin.catching_logs, "__slots__", ())) == known:
        plugin.catching_logs = _quick(plugin.catching_logs)  # type: ignore[misc]


def _quick(catching_logs: Any) -> Any:
    class QuickCatchingLogs(catching_logs):  # type: ignore[misc]
        """Attaches handlers without taking logging's lock per logger: appending needs none."""

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
    """Tear down the fixtures of earlier tests that `item`, the next test, does not use."""
    session._setupstate.teardown_exact(item)


def own_descriptors(config: pytest.Config) -> tuple[int, int]:
    """Return copies of this process's own standard input and output, which pytest has replaced.

    To be called while no test runs: pytest then captures input, but not output.
    """
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        return os.dup(0), os.dup(1)
    capture.suspend_global_capture(in_=True)
    try:
        return os.dup(0), os.dup(1)
    finally:
        capture.resume_global_capture()
        capture.suspend_global_capture(in_=False)


def pytest_folders() -> tuple[str, ...]:
    """Return the folders of pytest and of pluggy, which calls its hooks."""
    specs = [find_spec(name) for name in ("_pytest", "pytest", "pluggy")]
    return tuple(os.path.dirname(spec.origin) for spec in specs if spec and spec.origin)


def ansi_terminal(reporter: TerminalReporter) -> TextIO | None:
    """Return the reporter's output file if it is a terminal that understands escape sequences."""
    file: TextIO | None = getattr(getattr(reporter, "_tw", None), "_file", None)
    escapes = os.environ.get("TERM", "dumb") != "dumb"
    return file if file is not None and escapes and file.isatty() else None


def columns_left(reporter: TerminalReporter) -> int:
    """Return the number of columns after what a terminal reporter has written in this line."""
    writer = reporter._tw
    return int(writer.fullwidth - writer.width_of_current_line)
