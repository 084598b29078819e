"""The run as a whole: one launcher, one worker group at a time, ranked tests one after another."""

from __future__ import annotations

import pickle
import sys
import time

import pytest

from pytest_pprank._pytest_compat import basetemp_of
from pytest_pprank.controller.debugger.debug import Debug
from pytest_pprank.controller.following import following, lacking
from pytest_pprank.controller.group import WorkerGroup
from pytest_pprank.controller.lease_group import GroupLease
from pytest_pprank.controller.listeners import Listeners
from pytest_pprank.controller.nodes import RankNodes
from pytest_pprank.controller.page import PageRecorder
from pytest_pprank.controller.preloads import preload_warnings, wait_preloaded
from pytest_pprank.controller.progress import Progress
from pytest_pprank.controller.rank_config import plugin_modules, rank_arguments, rank_options
from pytest_pprank.controller.start import StartClock
from pytest_pprank.controller.tally import GroupTally
from pytest_pprank.controller.test_run import TestRun
from pytest_pprank.controller.warnings import WarningRelay
from pytest_pprank.devices import device_environment
from pytest_pprank.errors import GroupError
from pytest_pprank.launch.client import LauncherClient
from pytest_pprank.launch.kept import Keep
from pytest_pprank.options import options_of
from pytest_pprank.planning import Plan, checked_reverts, plan_of, planned, reaches_sglang
from pytest_pprank.protocol.bootstrap import RankBootstrap
from pytest_pprank.protocol.items import item_key
from pytest_pprank.protocol.launcher import preload_entries
from pytest_pprank.protocol.messages import ItemKey, Preloaded, RunTest, StartGroup
from pytest_pprank.report.again import add_again
from pytest_pprank.report.allowances import read_allowances
from pytest_pprank.report.merge import ReportMerger
from pytest_pprank.report.off import OffReport
from pytest_pprank.report.outcome import TestOutcome
from pytest_pprank.report.rank_report import is_red
from pytest_pprank.report.reverted import RevertReport
from pytest_pprank.report.sanitizers import SanitizerReport
from pytest_pprank.report.started import add_start, started_text
from pytest_pprank.report.text import add_line
from pytest_pprank.report.verdicts import (
    CollectionFailed,
    Detail,
    GroupCouldNotEnd,
    GroupCouldNotStart,
)
from pytest_pprank.topology import Topology

_MAX_START_FAILURES = 3
_INTERRUPTED_SECONDS = 2.0
"""How long ranks may tear down fixtures after Ctrl-C: many are stuck, and the user waits."""


class ControllerSession:
    """Runs the ranked tests of one pytest session."""

    def __init__(self, config: pytest.Config, ranked: list[pytest.Item]) -> None:
        self._config = config
        self._options = options_of(config)
        self._reverts = checked_reverts(self._options.reverts)
        self._ranked = ranked
        self._order: dict[pytest.Item, int] = {}
        self._launcher: LauncherClient | None = None
        self._device = self._preload_words = self._kept_shown = ""
        self._progress = Progress(config)
        self._page = PageRecorder(config)
        self._listeners = Listeners(config, self._options, self._progress, self._page.listener)
        self._group: WorkerGroup | None = None
        self._lease = GroupLease(config)
        self._nodes = RankNodes(config)
        self._topology: Topology | None = None
        self._groups_started = self._tests = 0
        self._interrupted: tuple[Detail, ...] = ()
        self._start_failures = 0
        self._started: tuple[str, float] | None = None
        self._debug = Debug(config, self._listeners)
        self.leave = False
        """Whether the user has left a debugger in a way that stops the run."""
        self.tally = GroupTally()
        self._warnings = WarningRelay(config)
        described = tuple(r.describe() for r in self._reverts)
        self._merger = ReportMerger(config, described)
        self.reverted = RevertReport(described)
        self.ran: dict[str, None] = {}
        """Node ids of the ranked tests that have run."""
        self._off = OffReport()
        self._sanitizers = SanitizerReport(read_allowances(self._options.sanitize_allow))

    def start(self, session: pytest.Session) -> None:
        """Fix the order of the tests and start importing torch and SGLang in the background."""
        self._ranked = [item for item in session.items if plan_of(item) is not None]
        self._order = {item: index for index, item in enumerate(session.items)}
        if self._ranked:
            if refused := self._debug.refused(len(self._ranked)):
                self._warnings.warn(refused)
            self._start_launcher(planned(self._ranked[0]).topology.device)
            if not self._options.keep:
                self._progress.announce(f"importing {self._preload_words} once, for all ranks")

    def _start_launcher(self, device: str) -> None:
        """Start the launcher for `device`; another device has another preload."""
        self._stop_launcher()
        plans = [planned(item) for item in self._ranked]
        sglang = any(reaches_sglang(p) and p.topology.device == device for p in plans)
        self._preload_words = "torch and SGLang" if sglang else "torch"
        plugins, given = plugin_modules(self._config), self._options
        self._launcher = LauncherClient(
            preload_entries(device, sglang=sglang),
            plugins,
            environment=device_environment(device),
            keep=Keep(60 * given.keep_minutes, self._preload_words) if given.keep else None,
        )
        self._device = device
        self._kept_shown = self._launcher.kept
        if self._kept_shown:
            self._progress.say(self._kept_shown)

    def run(self, item: pytest.Item, plan: Plan, nextitem: pytest.Item | None) -> None:
        """Run one test on its group and report it like pytest's own protocol."""
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.reports(item, plan, nextitem):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def reports(
        self, item: pytest.Item, plan: Plan, nextitem: pytest.Item | None
    ) -> list[pytest.TestReport]:
        """Run one test on its group once; return the reports of its phases."""
        self._listeners.begin(item.nodeid)
        self._page.begin()
        outcome = self._outcome(item, plan, nextitem)
        self.leave |= outcome.leave
        self._listeners.flush()
        if self._config.getoption("capture", "fd") == "no":
            outcome.printed.clear()  # it has been shown live
        reports = self._merger.merge(item, plan, outcome)
        self._sanitizers.add_to(item, outcome, reports)
        self._off.add_to(item, outcome.findings.off, plan.asked, reports)
        if self._started is not None:
            add_start(reports, *self._started, shown=self._config.get_verbosity() > 0)
            self._started = None
        red = [report for report in reports if is_red(report)]
        if outcome.spoiled or outcome.unsettled:
            self.tally.spoiled(plan.topology, red=bool(red))
        if outcome.spoiled:
            self._report_replaced(item, outcome.spoiled, red)
        add_again(item, plan, reports)
        self._page.point_to(item, reports)
        if outcome.left and not any(report.failed for report in reports):
            self._warnings.warn(
                f"pprank: this test has left changed, and it was put back for the next one: "
                f"{outcome.left}",
                item,
            )
        self._warnings.flush()
        self.ran[item.nodeid] = None
        self._page.add(item, plan, outcome, reports)
        return reports

    def _report_replaced(self, item: pytest.Item, why: str, red: list[pytest.TestReport]) -> None:
        """Add the reason to the report of a failure, also an expected one; otherwise warn."""
        text = f"worker group replaced after this test: {why}"
        for report in red[:1]:
            add_line(report, text)
        if not red:
            self._warnings.warn(f"pprank: {text}", item)

    def _outcome(self, item: pytest.Item, plan: Plan, nextitem: pytest.Item | None) -> TestOutcome:
        start = time.monotonic()
        try:
            group = self._group_for(plan)
        except GroupError as error:
            trouble = GroupCouldNotStart(error=str(error))
            return TestOutcome(troubles=[trouble], seconds=time.monotonic() - start)
        key = item_key(item)
        if reasons := lacking(group, key):
            return TestOutcome(troubles=[CollectionFailed(reasons=reasons)])
        following = self._following(nextitem, plan, group)
        self._tests += 1
        order = RunTest(key, following, self._tests, item.nodeid, plan.sanitizers, plan.perturb)
        outcome = self._run_test(group, order, plan, item)
        if outcome.spoiled or outcome.unsettled or following is None:
            if self._lease.wanted:
                self.tally.given_back(plan.topology)
            self._end_group(outcome)
        return outcome

    def _run_test(
        self, group: WorkerGroup, order: RunTest, plan: Plan, item: pytest.Item
    ) -> TestOutcome:
        assert self._debug is not None
        starts = self._started is not None and plan.topology.server_args is not None
        show = self._show_start if starts else self._progress.show
        run = TestRun(group, order, plan.timeout, self._options.grace, self._debug.prompt, show)
        try:
            with self.tally.testing(), self._progress.waiting():
                outcome = run.wait()
        except KeyboardInterrupt:
            where = run.where()
            self._interrupted = (("test", item.nodeid), *where)
            self._page.capture(group)
            self._page.interrupted(item, plan, run.interrupted(), where)
            raise
        self._page.capture(group)
        return outcome

    def _show_start(self, text: str) -> None:
        """Show where the ranks are in a group's first test, whose setup starts the Scheduler."""
        self._progress.show(text.replace("setup on", "SGLang starts and loads on"))

    def _end_group(self, outcome: TestOutcome) -> None:
        try:
            self._drop_group(orderly=not outcome.troubles)
        except GroupError as error:
            # do not start anything else beside processes that cannot be ended
            outcome.troubles.append(GroupCouldNotEnd(error=str(error)))
            self._stop_launcher()

    def _following(
        self, nextitem: pytest.Item | None, plan: Plan, group: WorkerGroup
    ) -> ItemKey | None:
        """Return the next test of this group, skipping plain tests; None if there is none."""
        if nextitem is None or plan.fresh or self._lease.wanted:
            return None
        return following(nextitem.session.items[self._order[nextitem] :], plan, group)

    def _group_for(self, plan: Plan) -> WorkerGroup:
        if self._group is not None and self._topology == plan.topology and not plan.fresh:
            return self._group
        self._drop_group(orderly=True)
        stopped = self._launcher is None or not self._launcher.alive
        if stopped or self._device != plan.topology.device:
            self._start_launcher(plan.topology.device)
        try:
            with self.tally.starting(plan):
                group = self._start_group(plan.topology)
        except GroupError as error:
            self._nodes.down(f"g{self._groups_started}", {}, "its worker group could not start")
            self._count_start_failure(error)
            raise
        self._start_failures = 0
        self._group, self._topology = group, plan.topology
        return group

    def _start_group(self, topology: Topology) -> WorkerGroup:
        clock = StartClock(self._progress.show)
        self._lease.take(topology)
        clock.lap("lease")
        group = self._new_group(topology)
        with self._progress.waiting():
            preloaded = self._check_preload()
            clock.lap("imports")
            group.start(clock)
        self._debug.announce(group)
        text = started_text(group.name, group.ranks, clock.parts, preloaded)
        self._page.group_started(group.name, text)
        self._started = (text, clock.seconds)
        return group

    def _check_preload(self) -> Preloaded:
        assert self._launcher is not None
        known, kept = self._launcher.preloaded, self._kept_shown
        preloaded = wait_preloaded(self._launcher, self._progress.show)
        self._kept_shown = self._launcher.kept
        for text in preload_warnings(self._launcher, preloaded, kept, fresh=known is None):
            self._warnings.warn(f"pprank: {text}")
        return preloaded

    def _count_start_failure(self, error: GroupError) -> None:
        self._start_failures += 1
        if self._start_failures >= _MAX_START_FAILURES:
            raise pytest.UsageError(
                f"worker groups failed to start {self._start_failures} times in a row; the last "
                f"one:\n{error}"
            )

    def _new_group(self, topology: Topology) -> WorkerGroup:
        assert self._launcher is not None
        self._groups_started += 1
        name = f"g{self._groups_started}"
        bootstrap = self._bootstrap(name, topology)
        order = StartGroup(
            group=name,
            nproc=topology.world_size,
            workdir=bootstrap.workdir,
            bootstrap=pickle.dumps(bootstrap),
        )
        names = topology.sizes.rank_names
        return WorkerGroup(self._launcher, order, self._warnings, self._listeners.all, names)

    def _bootstrap(self, name: str, topology: Topology) -> RankBootstrap:
        assert self._launcher is not None
        items = [item for item in self._ranked if planned(item).topology == topology]
        return RankBootstrap(
            address=self._launcher.listener.address,
            key=self._launcher.key,
            group=name,
            device=topology.device,
            gpus=topology.gpus,
            sizes=topology.sizes,
            workdir=str(self._launcher.run_dir / name),
            folder=str(self._config.invocation_params.dir),
            path=tuple(sys.path),
            arguments=rank_arguments(self._config, items),
            options=rank_options(self._config),
            items=tuple(item_key(item) for item in items),
            basetemp=str(basetemp_of(self._config) or self._launcher.run_dir),
            server_args=None if topology.server_args is None else dict(topology.server_args),
            reverts=self._reverts,
            environment={
                **self._launcher.rank_environment(),
                **self.reverted.environment(self._launcher.run_dir),
                **self._lease.environment,
            },
            workerinputs=self._nodes.up(name, topology.world_size),
            trace=self._page.wanted,
            debugging=self._debug.debugging,
        )

    def _drop_group(self, *, orderly: bool) -> None:
        group, self._group, self._topology = self._group, None, None
        if group is None:
            return
        try:
            if orderly:
                self._report_late_errors(group.close())
            else:
                group.kill()
        finally:
            self._nodes.down(group.name, group.outputs, "its worker group was ended")
        self._lease.give_back()

    def _report_late_errors(self, errors: list[str]) -> None:
        """Warn about errors while a group ends: there is no test left that they could fail."""
        for error in errors:
            self._warnings.warn(f"pprank: while its worker group was ending, {error}")
        self._warnings.flush()

    def finish(self, *, orderly: bool) -> None:
        """End the running group. It tears down its fixtures if the session ended normally."""
        for allowance in self._sanitizers.unused() if orderly else ():
            self._warnings.warn(
                f"--pprank-sanitize-allow: this entry matched nothing in this run: {allowance}"
            )
        self._drop_group(orderly=orderly)
        if self._launcher is not None:
            self.reverted.collect(self._launcher.run_dir)
        self._finish_page()

    def interrupt(self) -> None:
        """End the running group after Ctrl-C: send SIGINT to its ranks and wait for teardown.

        The wait is at most `_INTERRUPTED_SECONDS`.
        """
        group, self._group, self._topology = self._group, None, None
        if group is not None:
            group.interrupt()
            group.close(_INTERRUPTED_SECONDS)
            self._nodes.down(group.name, group.outputs, "the run was interrupted")
        self._finish_page()

    def _finish_page(self) -> None:
        reverted = self.reverted.lines(self.ran, self._page.red)
        self._page.finish(self.tally.summary(), self.checks_off, list(reverted))

    @property
    def checks_off(self) -> list[str]:
        """The checks that were off in this run, with the reason, one per line."""
        return list(self._off.summary())

    def summary(self) -> list[str]:
        """Return lines about worker groups and checks, for the summary of the run."""
        return [*([self.tally.summary()] if self.ran else ()), *self.checks_off]

    @property
    def interrupted(self) -> tuple[Detail, ...]:
        """Where the ranks were when the user interrupted a test; empty without an interrupt."""
        return self._interrupted

    def close(self) -> None:
        """End everything this run has started."""
        try:
            self._drop_group(orderly=False)
        finally:
            self._stop_launcher()
            self._lease.give_back()
            self._listeners.close()
            self._debug.close()

    def _stop_launcher(self) -> None:
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            self.reverted.collect(launcher.run_dir)
            launcher.close()
