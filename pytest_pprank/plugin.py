"""The plugin's pytest hooks on the controller; on a rank most of them do nothing (host.session).

Nothing is imported here that a run without ranked tests would have to pay for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pprank import options, planning, registration
from pytest_pprank._pytest_compat import tear_down_for
from pytest_pprank.errors import UsageError
from pytest_pprank.markers import DECLARATIONS
from pytest_pprank.rank.context import is_rank

if TYPE_CHECKING:
    from pytest_pprank.controller.session import ControllerSession

_SESSION: pytest.StashKey[ControllerSession] = pytest.StashKey()
_REFUSAL = "pprank_refusal"
"""The key in the workeroutput of a worker of pytest-xdist for its usage error."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the plugin's options."""
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks other plugins can implement, and register the fixtures.

    The fixtures are registered here and not later, so that a fixture of the same name in a later
    plugin overrides ours.
    """
    from pytest_pprank import fixtures, hookspecs

    pluginmanager.add_hookspecs(hookspecs)
    pluginmanager.register(fixtures, "pprank-fixtures")


def pytest_configure(config: pytest.Config) -> None:
    """Register checks and faults of other plugins, validate the options and declare the markers."""
    for declaration in DECLARATIONS:
        config.addinivalue_line("markers", declaration)
    with _as_pytest_usage_error():
        registration.register(config, strict=not is_rank())
        given = options.options_of(config)
        options.check_debuggers(config)
        if given.sanitize_allow:
            from pytest_pprank.report.allowances import read_allowances

            read_allowances(given.sanitize_allow)
        if given.report and not is_rank():
            from pytest_pprank.controller import page_run

            page_run.register(config)
        if given.reverts:
            from pytest_pprank.sglang import reverts

            for spec in given.reverts:
                reverts.resolve(spec)
        if not hasattr(config, "workerinput"):  # the process that reports
            _register_writers(config, given)


def _register_writers(config: pytest.Config, given: options.Options) -> None:
    if config.getoption("xmlpath", None):
        from pytest_pprank.controller.neighbours import junitxml

        junitxml.register(config)
    if given.summary and not config.option.collectonly:
        _register_summary(config, given)


def _register_summary(config: pytest.Config, given: options.Options) -> None:
    from pytest_pprank.report.header import header_lines
    from pytest_pprank.report.summary import MarkdownSummary

    def head() -> list[str]:
        return [line.removeprefix("pprank: ") for line in header_lines(given)]

    def more() -> list[str]:
        controller = config.stash.get(_SESSION, None)
        return [] if controller is None else controller.summary()

    own = MarkdownSummary(Path(given.summary), head, more)
    config.pluginmanager.register(own, "pprank-summary")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Return what a ranked run will use; nothing if no size was given."""
    given = options.options_of(config)
    if not given.sizes and not given.reverts:
        return []
    from pytest_pprank.report.header import header_lines

    with _as_pytest_usage_error():
        return header_lines(given)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Let test files import SGLang at module level, on the controller and on the ranks."""
    from pytest_pprank.sglang.static.torchvision_shim import install_import_hook

    install_import_hook()
    if options.options_of(session.config).sizes and not is_rank():
        # before test folders are on sys.path, whose modules could hide the standard library's
        import_module("pytest_pprank.controller.session")


@pytest.hookimpl(trylast=True)  # the user's own parameters come first in the ids
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize each ranked test with its sizes."""
    planning.parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Plan and group the ranked tests that -k, -m and other plugins have left."""
    if is_rank() or _only_shows_fixtures(config):
        return
    with _as_pytest_usage_error(config):
        registration.check_late(config)
        ranked = planning.make_plans(config, items)
        if config.option.collectonly:
            planning.checked_reverts(options.options_of(config).reverts)
            return
        planning.check_debugged(config, ranked)
        if ranked:
            from pytest_pprank.controller import coverage, neighbours, session
            from pytest_pprank.sglang.static import release

            release.check_torch()
            coverage.register(config)
            neighbours.register(config)
            config.stash[_SESSION] = session.ControllerSession(config, ranked)
        planning.check_reverts(config, ranked)
        if ranked or options.options_of(config).sizes:
            from pytest_pprank.controller import outside_ranks

            outside_ranks.register(config)
    if not config.getoption("stepwise", False):  # which relies on the order it has seen
        planning.group_by_topology(items)


def _only_shows_fixtures(config: pytest.Config) -> bool:
    return bool(config.option.showfixtures or config.option.show_fixtures_per_test)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Start the launcher as soon as it is certain that ranked tests will run."""
    controller = session.config.stash.get(_SESSION, None)
    stops = session.testsfailed and not session.config.option.continue_on_collection_errors
    if controller is not None and not stops:
        from pytest_pprank.controller import termination

        termination.register(session.config)
        controller.start(session)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a ranked test on its worker group instead of in this process."""
    plan = planning.plan_of(item)
    if plan is None:
        return None
    from pytest_pprank.controller import reruns

    controller = item.config.stash[_SESSION]
    if not reruns.run(item, nextitem, lambda: controller.reports(item, plan, nextitem)):
        controller.run(item, plan, nextitem)
    _finish(item, nextitem)
    if controller.leave:
        pytest.exit("Quitting debugger")  # in pytest's words
    return True


def _finish(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Tear down fixtures of plain tests before `item` that `nextitem` does not use.

    pytest does this at the end of each test, and raises if it finds unexpected fixtures set up.
    """
    call = pytest.CallInfo.from_call(
        lambda: tear_down_for(nextitem, item.session), "teardown", reraise=pytest.exit.Exception
    )
    if call.excinfo is not None:
        # bypass the phases' hooks: for other plugins all phases of the item are over
        report = pytest.TestReport.from_item_and_call(item, call)
        item.ihook.pytest_runtest_logreport(report=report)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Enforce pytest-timeout's deadline of a ranked test here instead of by that plugin's alarm.

    The alarm would end the controller while it exchanges messages with the ranks. On ranks
    pytest-timeout is unregistered.
    """
    plan = planning.plan_of(item)
    if plan is not None and settings.timeout:
        planning.limit(item, float(settings.timeout))
    return True if plan is not None else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: pytest.Item | pytest.Collector) -> None:
    """Tell a worker of pytest-xdist the user's folder, for commands that are to run there."""
    from pytest_pprank.controller import termination
    from pytest_pprank.report import again

    if options.options_of(node.config).sizes:
        termination.register(node.config)
    workerinput: dict[str, object] = getattr(node, "workerinput", {})
    workerinput[again.FOLDER] = str(node.config.invocation_params.dir)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: pytest.Item | pytest.Collector) -> None:
    """Pass the output of the ranks of a pytest-xdist worker on to other plugins.

    Raises pytest.UsageError if the worker has refused to run.
    """
    output: dict[str, Any] = getattr(node, "workeroutput", {})
    if _REFUSAL in output:
        raise pytest.UsageError(output[_REFUSAL])
    left = output.get("pprank_nodes")
    if left:
        from pytest_pprank.controller import neighbours
        from pytest_pprank.controller.nodes import down_with_worker

        neighbours.register(node.config)
        down_with_worker(node.config, left)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the hooks of other plugins
def pytest_sessionfinish(
    session: pytest.Session, exitstatus: int
) -> Generator[None, object, object]:
    """Let the last worker group tear down its fixtures, or end it if the run was interrupted."""
    controller = session.config.stash.get(_SESSION, None)
    if controller is not None and exitstatus == pytest.ExitCode.INTERRUPTED:
        controller.interrupt()
    elif controller is not None:
        controller.finish(orderly=exitstatus in (0, 1))
    return (yield)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print which checks were off, what was reverted, after Ctrl-C where the ranks were, counts.

    Also adds the start times of worker groups to pytest's durations, which are printed later.
    """
    from pytest_pprank.report import retries, started

    started.add_durations(terminalreporter)
    controller = config.stash.get(_SESSION, None)
    if controller is not None and controller.checks_off:
        terminalreporter.section("pprank: checks that were off", yellow=True)
        for line in controller.checks_off:
            terminalreporter.write_line(line)
    if controller is not None:
        _show_reverted(terminalreporter, controller)
    if controller is not None and controller.interrupted:
        terminalreporter.section("pprank: where the ranks were", yellow=True)
        for title, text in controller.interrupted:
            terminalreporter.write_line(f"{title}:", bold=True)
            terminalreporter.write_line(text)
    if controller is not None and controller.ran and config.get_verbosity() > -2:
        terminalreporter.write_line(f"pprank: {controller.tally.summary()}")
    if line := retries.line_for_runner(config, terminalreporter.stats):
        terminalreporter.write_line(line, red=True)


def _show_reverted(reporter: pytest.TerminalReporter, controller: ControllerSession) -> None:
    from pytest_pprank.report.reverted import red_tests

    red = red_tests(reporter.stats)
    if lines := list(controller.reverted.lines(controller.ran, red)):
        reporter.section("pprank: reverted", yellow=True)
        for line in lines:
            reporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End all processes of this run and remove its folders."""
    controller = config.stash.get(_SESSION, None)
    if controller is not None:
        del config.stash[_SESSION]
        controller.close()


@contextmanager
def _as_pytest_usage_error(config: pytest.Config | None = None) -> Iterator[None]:
    """Convert our UsageError to pytest's: the run ends with exit code 4 and only the message.

    `config`: of a process that may be a worker of pytest-xdist, which prints nothing itself.
    """
    try:
        yield
    except UsageError as error:
        output: dict[str, object] = getattr(config, "workeroutput", {})
        output[_REFUSAL] = str(error)
        raise pytest.UsageError(str(error)) from None
