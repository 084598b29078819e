"""The page of a run: what it shows of each kind of failure, and that it is there after any end."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from page_reader import Page, arrows, events

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

TESTS = """
    import os, signal
    import pytest
    import torch, torch.distributed as dist

    def test_green(process_group, pprank):
        dist.all_reduce(torch.ones(1))

    def test_assertion(process_group, pprank):
        if pprank.rank == 0:
            dist.send(torch.ones(4), dst=1)
        else:
            dist.recv(torch.ones(4), src=0)
        print("</script><b>printed</b>", pprank.rank)
        pprank.barrier()
        assert pprank.rank == 0, "red \\x1b[31mtext\\x1b[0m"

    @pytest.mark.pprank(timeout=600)
    def test_deadlock(process_group, pprank):
        dist.all_reduce(torch.ones(1))
        dist.recv(torch.empty(1), src=1 - pprank.rank)

    def test_killed(process_group, pprank):
        dist.all_reduce(torch.ones(1))
        if pprank.rank == 1:
            with open("/proc/self/status"):
                os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))

    def test_finding(process_group, pprank):
        if pprank.rank == 0:
            handle = dist.isend(torch.ones(1), dst=1)
        else:
            dist.recv(torch.ones(1), src=0)
        pprank.barrier()

    def test_alone_in_a_barrier(pprank):
        if pprank.rank == 0:
            pprank.barrier()

    @pytest.mark.xfail(strict=True)
    def test_expected(pprank):
        assert 0

    def test_skipped(pprank):
        pytest.skip("not here")

    @pytest.mark.skip
    def test_without_ranks(pprank): pass

    @pytest.mark.pprank(perturb="7:messages")
    def test_disturbed(process_group, pprank):
        for _ in range(40):
            dist.all_reduce(torch.ones(1))
        assert 0, "red"
"""
GIVEN = ("-p", "pytest_pprank", "--pp-size=2", "--pprank-device=cpu", "--pprank-grace=1")
RED = ["assertion", "deadlock", "killed", "finding", "alone_in_a_barrier", "disturbed"]


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=TESTS)
    return module_runner.run(*GIVEN, "--pprank-report", "page")


@pytest.fixture(scope="module")
def page(run: Run, module_runner: Runner) -> Page:
    assert run.ret == 1, run.out
    return Page(module_runner.folder / "page")


def test_the_table_has_all_tests_that_had_ranks(page: Page) -> None:
    red = dict.fromkeys((f"test_{name}[pp2]" for name in RED), "failed")
    others = {"test_green": "passed", "test_expected": "xfailed", "test_skipped": "skipped"}
    assert page.tests == red | {f"{name}[pp2]": outcome for name, outcome in others.items()}


@pytest.mark.parametrize("name", RED)
def test_a_failure_names_its_place_on_the_page(run: Run, page: Page, name: str) -> None:
    failure = run.failure(f"test_{name}[pp2]")
    (address,) = re.findall(r"^page: page/index\.html#(\S+)$", failure, re.MULTILINE)
    assert page.anchors(f"test_{name}[pp2]") == [address]
    assert failure.index("again: ") < failure.index("page: ")
    assert address in page.timelines()


def test_the_end_of_the_run_names_the_page(run: Run, page: Page) -> None:
    assert f"\npprank: page: {page.folder / 'index.html'}\n" in run.out
    assert sorted(entry.name for entry in page.folder.iterdir()) == ["index.html", "trace.json"]


def test_only_failed_tests_have_a_timeline(page: Page) -> None:
    assert len(page.timelines()) == len(RED)
    assert "only failed tests have one" in page.view("test_green[pp2]")


def test_phases_and_what_a_rank_has_raised(page: Page) -> None:
    shown = page.timeline("test_assertion[pp2]")
    for rank in (0, 1):
        phases = [event.name for event in events(shown, "phase", rank)]
        assert phases == ["setup", "call", "teardown"]
    (error,) = events(shown, "error")
    assert error.lane == 1
    assert error.name.startswith("AssertionError: red text")
    assert error.stack[0].endswith("in test_assertion")
    call = events(shown, "phase", 1)[1]
    assert call.end is not None
    assert call.start < call.end <= error.start


def test_messages_collectives_and_meetings(page: Page) -> None:
    shown = page.timeline("test_assertion[pp2]")
    found = list(arrows(shown))
    assert ("message", "0: send to rank 1", "1: recv from rank 0") in found
    (sent,) = [event for event in events(shown, "message", 0) if event.name == "send to rank 1"]
    assert sent.details["tensors"] == "float32[4]"
    assert sent.stack[0].endswith("in test_assertion")
    assert {e.lane for e in events(shown, "meeting") if e.name == "barrier()"} == {0, 1}
    assert shown.unmet == []


def test_what_was_printed_is_shown_when_it_came(page: Page) -> None:
    shown = page.timeline("test_assertion[pp2]")
    assert [(e.lane, e.name) for e in sorted(events(shown, "output"), key=lambda e: e.lane)] == [
        (0, "</script><b>printed</b> 0"),
        (1, "</script><b>printed</b> 1"),
    ]
    assert "<b>printed</b>" not in page.text


def test_a_deadlock_is_a_graph_with_messages_that_met_nobody(page: Page) -> None:
    view, shown = page.view("test_deadlock[pp2]"), page.timeline("test_deadlock[pp2]")
    assert view.count('<path class="wait"') == 2
    assert view.count('<g class="node stuck">') == 2
    assert "rank 0 waits in recv from rank 1" in view
    missing = [(shown.events[each.event].name, each.lack) for each in shown.unmet]
    assert missing == [
        ("recv from rank 1", "rank 1 did not send"),
        ("recv from rank 0", "rank 0 did not send"),
    ]
    assert [event.end for event in events(shown, "message")] == [None, None]
    # the call of each rank never ended, and the page shows the second in which nothing moved
    assert [e.end for e in events(shown, "phase") if e.name == "call"] == [None, None]
    assert shown.seconds - events(shown, "message")[-1].start > 0.9
    assert "Stacks of ranks 0,1" in view


def test_a_killed_rank_has_left_its_trace(page: Page) -> None:
    view, shown = page.view("test_killed[pp2]"), page.timeline("test_killed[pp2]")
    assert "rank died" in view
    assert [lane.note for lane in shown.lanes] == ["", "died"]
    dead = events(shown, "phase", 1)
    assert [(event.name, event.end is None) for event in dead] == [("setup", False), ("call", True)]
    assert [event.name for event in events(shown, "collective", 1)][-1] == "all_reduce #1"
    assert [event.name for event in events(shown, "collective", 0)][-1] == "all_reduce #2"


def test_a_finding_is_pinned_where_it_arose(page: Page) -> None:
    shown = page.timeline("test_finding[pp2]")
    (finding,) = events(shown, "finding")
    assert finding.lane == 0
    assert finding.name.startswith("p2p: isend of float32[1] to rank 1")
    assert "isend of float32[1] to rank 1" in str(finding.details["finding"])
    (sent,) = [event for event in events(shown, "message", 0) if "send" in event.name]
    assert sent.start < finding.start


def test_a_rank_in_a_meeting_that_cannot_take_place(page: Page) -> None:
    shown = page.timeline("test_alone_in_a_barrier[pp2]")
    (alone,) = [event for event in events(shown, "meeting") if event.name == "barrier()"]
    assert alone.lane == 0
    assert "PeerError" in str(alone.details["raised"])


def test_faults_are_shown(page: Page) -> None:
    faults = events(page.timeline("test_disturbed[pp2]"), "fault")
    assert {fault.name for fault in faults} == {"messages"}
    assert str(faults[0].details["delay"]).endswith(" ms")


def test_the_trace_has_the_same_tests(page: Page) -> None:
    names = [event["args"] for event in page.trace() if event["name"] == "process_name"]
    assert names == [{"name": f"test_it.py::test_{name}[pp2]"} for name in RED]


def test_the_view_has_what_the_terminal_had(run: Run, page: Page) -> None:
    (command,) = re.findall(r"^again: (.*)$", run.failure("test_killed[pp2]"), re.MULTILINE)
    view = page.view("test_killed[pp2]")
    assert command.replace("'", "&#39;") in view
    assert "killed by SIGKILL" in view
    assert "worker group g" in view
    assert re.search(r"<dt>groups</dt><dd>\d+ worker groups: ", page.text)


WATCHES_ITS_FOLDER = """
    def test_it(pprank):
        traces = sorted(path.name for path in pprank.workdir.glob("trace*"))
        assert traces == {traces}
"""


@pytest.mark.parametrize(
    ("more", "traces"), [((), []), (("--pprank-report=page",), ["trace0.bin", "trace1.bin"])]
)
def test_nothing_is_recorded_without_the_option(
    runner: Runner, more: tuple[str, ...], traces: list[str]
) -> None:
    runner.write(test_it=WATCHES_ITS_FOLDER.format(traces=traces))
    run = runner.run(*GIVEN, *more)
    assert run.ret == 0, run.out
    assert ("page: " in run.out) is bool(more)


def test_all_tests_on_request_and_by_ini_options(runner: Runner) -> None:
    runner.write(test_it="def test_it(pprank): pass")
    ini = "[pytest]\npprank_report = out\npprank_report_tests = all\n"
    (runner.folder / "pytest.ini").write_text(ini)
    runner.run(*GIVEN)
    page = Page(runner.folder / "out")
    assert page.tests == {"test_it[pp2]": "passed"}
    assert len(page.timeline("test_it[pp2]").events) > 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pprank-report=test_it.py"], "--pprank-report: '{folder}/test_it.py' is not a folder"),
        (["--pprank-report=."], "'{folder}' has something else in it (test_it.py"),
        (
            ["--pprank-report=x", "--pprank-report-tests=some"],
            "--pprank-report-tests: 'some' is not one of failed, all",
        ),
    ],
)
def test_a_wrong_option_ends_the_run_at_once(
    runner: Runner, options: list[str], words: str
) -> None:
    runner.write(test_it="def test_it(pprank): pass")
    run = runner.run(*GIVEN, *options)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert words.format(folder=runner.folder) in run.out
    assert [path.name for path in runner.folder.iterdir()] == ["test_it.py"]


def test_a_former_page_is_replaced_but_not_by_a_run_that_only_collects(runner: Runner) -> None:
    runner.write(test_it="def test_it(pprank): assert 0\ndef test_other(pprank): pass")
    runner.run(*GIVEN, "--pprank-report=page")
    runner.run(*GIVEN, "--pprank-report=page", "--collect-only")
    assert len(Page(runner.folder / "page").tests) == 2
    run = runner.run(*GIVEN, "--pprank-report=page", "-k", "other")
    assert run.counts() == {"passed": 1, "deselected": 1}
    assert Page(runner.folder / "page").tests == {"test_other[pp2]": "passed"}


def test_a_run_without_ranked_tests_has_a_page(runner: Runner) -> None:
    runner.write(test_it="def test_plain(): pass")
    runner.run(*GIVEN, "--pprank-report=page")
    assert "No ranked test has run." in Page(runner.folder / "page").text


def test_after_minus_x(runner: Runner) -> None:
    runner.write(test_it="def test_red(pprank): assert 0\ndef test_never(pprank): pass")
    runner.run(*GIVEN, "--pprank-report=page", "-x")
    assert Page(runner.folder / "page").tests == {"test_red[pp2]": "failed"}


STUCK = """
    import time

    def test_red(pprank):
        assert 0

    def test_stuck(pprank):
        pprank.barrier()
        if pprank.rank == 0:
            open("reached", "w").close()
        while True:
            time.sleep(0.01)
"""


def ended(process: subprocess.Popen[str], deadline: float) -> str:
    """Return what a run has printed when it has ended; a run that does not end is killed."""
    try:
        return process.communicate(timeout=deadline)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="SIGINT is ignored here (nohup)"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal(runner: Runner, number: signal.Signals) -> None:
    runner.write(test_it=STUCK)
    with runner.popen(*GIVEN, "--pprank-report=page") as process:
        runner.wait_for((runner.folder / "reached").exists, "the test is stuck")
        process.send_signal(number)
        out = ended(process, runner.deadline)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    page = Page(runner.folder / "page")
    assert page.tests == {"test_red[pp2]": "failed", "test_stuck[pp2]": "interrupted"}
    shown = page.timeline("test_stuck[pp2]")
    assert [e.name for e in events(shown, "meeting") if e.name == "barrier()"] == ["barrier()"] * 2
    assert [e.end for e in events(shown, "phase") if e.name == "call"] == [None, None]
    assert "This run was interrupted before all tests had run." in page.text
    assert "in test_stuck" in page.view("test_stuck[pp2]"), "its stacks"
    runner.wait_for(lambda: not runner.processes(), "no process is left")


def test_a_killed_run_leaves_what_the_next_one_replaces(runner: Runner) -> None:
    runner.write(test_it=STUCK)
    with runner.popen(*GIVEN, "--pprank-report=page") as process:
        runner.wait_for((runner.folder / "reached").exists, "the test is stuck")
        process.kill()
        ended(process, runner.deadline)
    runner.wait_for(lambda: not runner.processes(), "no process is left")
    assert not (runner.folder / "page" / "index.html").exists()
    runner.run(*GIVEN, "--pprank-report=page", "-k", "red")
    assert Page(runner.folder / "page").tests == {"test_red[pp2]": "failed"}


def test_a_group_that_does_not_start(runner: Runner) -> None:
    runner.write(
        test_it="def test_it(pprank): pass",
        conftest="""
            import os
            def pytest_pprank_rank_started(pprank):
                raise LookupError("no start")
        """,
    )
    run = runner.run(*GIVEN, "--pprank-report=page")
    page = Page(runner.folder / "page")
    assert page.tests == {"test_it[pp2]": "failed"}, run.out
    assert "No timeline: no rank has recorded anything" in page.view("test_it[pp2]")
    assert "no start" in page.view("test_it[pp2]"), run.out


def test_workers_of_xdist_share_one_page(runner: Runner) -> None:
    pytest.importorskip("xdist")
    many = "".join(f"def test_{n}(pprank): assert pprank.rank == 0\n" for n in range(4))
    runner.write(test_it=many)
    run = runner.run(*GIVEN, "--pprank-report=page", "-n2", "--pprank-lease=off")
    assert run.counts() == {"failed": 4}
    page = Page(runner.folder / "page")
    assert page.tests == {f"test_{n}[pp2]": "failed" for n in range(4)}
    assert len(page.timelines()) == 4
    for worker in ("gw0", "gw1"):
        assert f"<dt>groups of {worker}</dt>" in page.text
    for n in range(4):
        assert f"page/index.html#{page.anchors(f'test_{n}[pp2]')[0]}" in run.out


def test_each_attempt_of_a_test_has_its_place(runner: Runner) -> None:
    pytest.importorskip("pytest_rerunfailures")
    runner.write(test_it="def test_it(pprank): assert 0")
    runner.run(*GIVEN, "--pprank-report=page", "--reruns=1")
    page = Page(runner.folder / "page")
    first, second = page.anchors("test_it[pp2]")
    assert second == f"{first}-2"
    assert page.timelines().keys() == {first, second}


def test_a_folder_that_vanishes_is_told_and_fails_nothing(runner: Runner) -> None:
    runner.write(
        test_it="""
            import pytest, shutil
            from pathlib import Path
            def test_one(pprank): pass
            def test_plain(): shutil.rmtree(Path(__file__).parent / "page")
            def test_two(pprank): pass
        """
    )
    run = runner.run(*GIVEN, "--pprank-report=page", "-p", "no:randomly")
    assert run.counts() == {"passed": 3}
    assert "pprank: the page could not be written" in run.out


def test_page_without_a_terminal_plugin(runner: Runner) -> None:
    runner.write(test_it="def test_it(pprank): assert 0")
    with runner.popen(*GIVEN, "--pprank-report=page", "-p", "no:terminal") as process:
        ended(process, runner.deadline)
    assert Page(runner.folder / "page").tests == {"test_it[pp2]": "failed"}


def test_names_of_files_of_a_former_page_are_not_followed_out_of_the_folder(
    runner: Runner, tmp_path: Path
) -> None:
    """A link in the folder of a former page is replaced, and what it leads to is left alone."""
    precious = tmp_path / "precious.txt"
    runner.write(test_it="def test_it(pprank): pass")
    runner.run(*GIVEN, "--pprank-report=page")
    precious.write_text("kept")
    trace = runner.folder / "page" / "trace.json"
    trace.unlink()
    trace.symlink_to(precious)
    runner.run(*GIVEN, "--pprank-report=page")
    assert precious.read_text() == "kept"
    assert not trace.is_symlink()
