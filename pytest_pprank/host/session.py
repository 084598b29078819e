"""A pytest session on a rank, which runs the tests that the controller orders, one by one."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Generator

import pytest

from pytest_pprank._pytest_compat import (
    drop_plugins,
    extra_attributes,
    phase_raised,
    set_nodeid,
    silence_terminal,
    tear_down_for,
)
from pytest_pprank.errors import PeerError
from pytest_pprank.host.debugger.entry import RankDebugger
from pytest_pprank.host.lifecycles import begin_call, running
from pytest_pprank.host.link import Link
from pytest_pprank.known import marks
from pytest_pprank.markers import read_rank_mark
from pytest_pprank.oplog.record.ledger import begin_test, erred, unfinished
from pytest_pprank.protocol.bootstrap import RankBootstrap
from pytest_pprank.protocol.findings import Finding
from pytest_pprank.protocol.items import item_key
from pytest_pprank.protocol.messages import (
    PLAIN_FIELDS,
    Found,
    ItemKey,
    PhaseReport,
    Ready,
    Report,
    RunTest,
    Shutdown,
    TestDone,
    TornDown,
    WarningSeen,
    WritesReport,
)
from pytest_pprank.protocol.worker_data import pack, unpack
from pytest_pprank.rank import store
from pytest_pprank.rank.context import SERVER_ARGS
from pytest_pprank.rank.handle import Pprank
from pytest_pprank.rank.world import WorldWatch
from pytest_pprank.sglang.compat.test_case import run_each_method_once
from pytest_pprank.trace.file import FINDING, Detail
from pytest_pprank.trace.record import trace


def become_worker(config: pytest.Config, workerinput: bytes) -> None:
    """Present a rank to other plugins as a worker of pytest-xdist.

    Such plugins report and write on the controller, and leave for it what only the worker knows.
    """
    config.workerinput = unpack(workerinput)  # type: ignore[attr-defined]
    config.workeroutput = {}  # type: ignore[attr-defined]


def worker_output(config: pytest.Config) -> dict[str, object]:
    """Return what plugins of a rank have left for those of the controller."""
    output: dict[str, object] = config.workeroutput  # type: ignore[attr-defined]
    return output


class PeersNotReady(Exception):
    """Raised in the call phase of a rank because a peer did not pass setup."""


class RankSession:
    """Plugin object of a rank: replaces pytest's own loop over the items."""

    def __init__(
        self, config: pytest.Config, bootstrap: RankBootstrap, pprank: Pprank, link: Link
    ) -> None:
        self._config = config
        self._wanted = bootstrap.items
        config.stash[SERVER_ARGS] = bootstrap.server_args or {}
        self._pprank = pprank
        self._link = link
        separate_roles = bootstrap.server_args is not None and len(bootstrap.sizes.roles) > 1
        self._world = WorldWatch(pprank, separate_roles=separate_roles)
        self._debugger = RankDebugger(config, bootstrap.debugging, pprank, link)
        self._items: dict[ItemKey, pytest.Item] = {}
        self._collect_errors: dict[str, str] = {}
        self._peers_ready = True
        self._expected: ItemKey | None = None
        self._last_report: Report = None
        self.broken = ""
        """Why the session ended by itself; empty if it has not."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Print nothing: the controller reports."""
        silence_terminal(config)
        drop_plugins(config)

    def pytest_sessionstart(self) -> None:
        """Notify other plugins and conftest files that this rank has started."""
        self._debugger.install()
        self._config.hook.pytest_pprank_rank_started(pprank=self._pprank)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        """Report the end of teardown at once: pytest's last garbage collection may take long."""
        yield
        output, left = pack(worker_output(self._config))
        for name, why in left.items():
            text = f"pprank: workeroutput[{name!r}] does not reach the controller: {why}"
            self._link.send(WarningSeen("PytestWarning", text, "pytest-pprank", 1, "runtest", ""))
        self._link.send(TornDown(output))

    def pytest_internalerror(self, excrepr: object) -> None:
        """Keep the reason why the session broke: there is no terminal to print it."""
        self.broken = str(excrepr)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Keep the reason of a `pytest.exit` on this rank."""
        self.broken = excinfo.exconly()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep why a file could not be collected here, to report it with the file's tests."""
        if report.failed:
            self._collect_errors[str(report.nodeid)] = str(report.longrepr)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        """Keep all tests this group was started for, also if a plugin here deselects some.

        The controller has the same plugins and has selected the tests.
        """
        collected = list(items)
        yield
        by_key = {item_key(item): item for item in [*collected, *items]}
        self._items = {key: by_key[key] for key in self._wanted if key in by_key}
        items[:] = self._items.values()
        for item in items:
            if read_rank_mark(item).known_bug:
                marks.expect(item, marks.bugs_of(item, self._pprank.device))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests that the controller orders, until Shutdown."""
        session.testsfailed = 0  # a file that fails to collect is reported with its tests
        run_each_method_once()
        self._link.send(Ready(self._missing(), self._debugger.endpoint))
        while not isinstance(order := self._link.next_order(), Shutdown):
            self._run(order)
        return True

    def _missing(self) -> dict[ItemKey, str]:
        errors = "\n".join(self._collect_errors.values())
        reason = errors or "the controller collected this test, this rank did not"
        return {key: reason for key in self._wanted if key not in self._items}

    def _run(self, order: RunTest) -> None:
        item = self._items[order.key]
        set_nodeid(item, order.nodeid)
        following = self._items.get(order.next_key) if order.next_key else None
        if order.key != self._expected:
            # another test was announced as the next one (-x, xdist, a lost rank)
            tear_down_for(item, item.session)
        self._expected = order.next_key
        self._pprank.failed = False
        self._link.begin(order.serial)
        begin_test(order.serial)
        trace.begin_test(order.serial)
        store.begin_test(order.serial)
        self._world.begin_test()
        self._last_report = None
        watched = running(order, self._pprank, self._send_finding)
        with watched as lifecycles, self._debugger.in_test(item):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        world = self._world.end(last=order.next_key is None)
        unsettled = (self._pprank.failed or erred()) and _has_process_group()
        self._link.send(
            TestDone(
                self._pprank.spoiled,
                unsettled,
                unfinished(),
                self._last_report,
                lifecycles.results(),
                lifecycles.describe_faults(),
                world,
            )
        )

    def _send_finding(self, finding: Finding) -> None:
        details: dict[str, Detail] = {"finding": finding.text, "usual cause": finding.cure}
        name = f"{finding.sanitizer}: {finding.text}".partition("\n")[0]
        trace.note(FINDING, name, {**details, "where": list(finding.stack)})
        self._link.send(Found(finding))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a report; at the end of setup and call, meet the other ranks."""
        if report.when == "call" and not self._peers_ready:
            self._peers_ready = True
            return  # this rank has skipped the call phase
        serialised = self._serialise(report)
        self._pprank.failed |= phase_raised(report)
        if hasattr(report, "context"):
            self._link.send(PhaseReport(serialised))  # of a subtest: the phase goes on
        elif report.when == "setup":
            self._peers_ready = self._meet("setup", report.outcome, serialised)
        elif report.when == "call":
            self._meet("call", report.outcome, serialised)
        else:
            self._last_report = serialised

    def _meet(self, phase: str, outcome: str, report: Report) -> bool:
        try:
            payloads = self._link.exchange(f"end of {phase}", outcome.encode(), outcome, report)
        except PeerError:
            return False  # the controller has the peer's own report
        return set(payloads) == {b"passed"}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Run the call phase only if every rank has passed setup."""
        if not self._peers_ready:
            raise PeersNotReady
        begin_call()
        self._world.begin_call()
        try:
            with self._debugger.traced(item):
                return (yield)
        finally:
            self._world.end_call()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Say that a failure is being written down: pytest parses the test's files for it."""
        if call.excinfo is not None:
            self._link.send(WritesReport())
        report = yield
        self._debugger.examine(call, report)  # before the peers are told
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> None:
        """Note that a fixture is set up (see `WorldWatch.set_up`)."""
        self._world.set_up(fixturedef.scope)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str
    ) -> None:
        """Forward a warning: the controller's terminal shows it once for all ranks."""
        self._link.send(
            WarningSeen(
                category=warning_message.category.__name__,
                text=str(warning_message.message),
                filename=warning_message.filename,
                lineno=warning_message.lineno,
                when=when,
                nodeid=nodeid,
            )
        )

    def _serialise(self, report: pytest.TestReport) -> Report:
        if _is_plain(report):
            return tuple([getattr(report, name) for name in PLAIN_FIELDS])
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        return json.dumps(data, default=repr)


def _is_plain(report: pytest.TestReport) -> bool:
    """Return whether a report contains nothing but that a phase passed, as most do."""
    more = report.sections or report.user_properties or any(extra_attributes(report).values())
    return type(report) is pytest.TestReport and report.outcome == "passed" and not more


def _has_process_group() -> bool:
    """Return whether messages of a failed test may still be in flight to the next test."""
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed is not None and distributed.is_initialized())
