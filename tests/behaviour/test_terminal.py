"""What a run says besides its tests: how to run a failure again, and how many groups it took."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

TESTS = """
    import pytest

    @pytest.mark.parametrize("how", ["a b", "it's $HOME [x]"])
    def test_red(pprank, how):
        assert pprank.rank == 0, f"red, {how}"

    def test_spoils_and_passes(pprank):
        pprank.spoil("green said so")

    @pytest.mark.xfail(raises=ZeroDivisionError)
    def test_spoils_and_is_expected_to_fail(pprank):
        pprank.spoil("xfail said so")
        1 / 0

    @pytest.mark.pprank(fresh=True)
    def test_alone(pprank): pass

    @pytest.mark.xfail(strict=True)
    def test_passes_unexpectedly(pprank): pass

    def test_spoils_and_fails(pprank):
        pprank.spoil("red said so")
        assert 0, "red"

    def test_dies(pprank):
        if pprank.rank:
            import os
            os._exit(3)
        pprank.barrier()

    def test_last(pprank): pass

    @pytest.mark.pprank(perturb="7:messages")
    def test_perturbed(pprank, process_group):
        assert pprank.rank, "red"
"""
SHOWS_SECTIONS = """
    def pytest_terminal_summary(terminalreporter):
        for report in terminalreporter.stats.get("xfailed", ()):
            for title, text in report.sections:
                terminalreporter.write_line(f"xfailed, {title}: {text}")
"""
RED = [
    "test_red[a b-pp2]",
    "test_red[it's $HOME [x]-pp2]",
    "test_passes_unexpectedly[pp2]",
    "test_spoils_and_fails[pp2]",
    "test_dies[pp2]",
    "test_perturbed[pp2]",
]
GIVEN = ("-p", "pytest_pprank", "--pp-size=2", "--pprank-device=cpu")


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=TESTS, conftest=SHOWS_SECTIONS)
    (module_runner.folder / "pytest.ini").write_text("[pytest]\n")
    return module_runner.run(*GIVEN, "--pprank-sanitize=-logs", "--pprank-grace", "2")


def again(runner: Runner, failure: str) -> Run:
    """Run the command of a failure as a user does."""
    (command,) = re.findall(r"^again: (.*)$", failure, re.MULTILINE)
    return runner.shell(command)


def told(run: Run, test: str) -> list[str]:
    """Return what a failure says, and how it says to run it again."""
    kept = ("E  ", "perturbed: ", "again: ")
    return [line for line in run.failure(test).splitlines() if line.startswith(kept)]


@pytest.mark.parametrize("test", RED)
def test_command_in_a_failure_shows_it_again(run: Run, module_runner: Runner, test: str) -> None:
    second = again(module_runner, run.failure(test))
    assert second.ret == 1, second.out
    assert second.counts() == {"failed": 1}
    assert told(second, test) == told(run, test)


@pytest.mark.parametrize("test", RED)
def test_failure_has_one_section_of_ours_which_ends_in_the_command(run: Run, test: str) -> None:
    before, *sections = re.split(r"^-{5,} (?=pprank -)", run.failure(test), flags=re.MULTILINE)
    assert before
    (section,) = sections
    *_, last = re.split(r"^-{5,} ", section, flags=re.MULTILINE)[0].rstrip().splitlines()
    assert last.startswith("again: ")


def test_command_has_what_the_run_was_given(run: Run) -> None:
    command = told(run, "test_perturbed[pp2]")[-1]
    assert " -p pytest_pprank 'test_it.py::test_perturbed[pp2]' --pp-size 2 " in command
    ends = " --pprank-perturb 7:messages --pprank-grace 2 --pprank-sanitize=-logs"
    assert command.endswith(f" --pprank-device cpu{ends}")


def test_command_from_a_folder_below_rootdir(runner: Runner) -> None:
    (runner.folder / "pytest.ini").write_text("[pytest]\n")
    folder = runner.folder / "inner"
    folder.mkdir()
    (folder / "test_it.py").write_text("def test_it(pprank): assert 0")
    runner.folder = folder
    run = runner.run(*GIVEN)
    assert f"rootdir: {folder.parent}\n" in run.out
    assert again(runner, run.failure("test_it[pp2]")).counts() == {"failed": 1}


def test_command_for_a_module_of_pyargs(runner: Runner) -> None:
    for name in ("lib/mine", "here"):
        (runner.folder / name).mkdir(parents=True)
    (runner.folder / "lib/mine/__init__.py").touch()
    (runner.folder / "lib/mine/test_it.py").write_text("def test_it(pprank): assert 0")
    (runner.folder / "here/pytest.ini").write_text("[pytest]\npythonpath = ../lib\n")
    runner.folder /= "here"
    failure = runner.run(*GIVEN, "--pyargs", "mine").failure("test_it[pp2]")
    assert " --pyargs 'mine.test_it::test_it[pp2]' " in failure
    assert again(runner, failure).counts() == {"failed": 1}


def test_groups_are_counted(run: Run) -> None:
    (line,) = re.findall(r"^pprank: \d+ worker groups?: .*$", run.out, re.MULTILINE)
    assert re.fullmatch(
        r"pprank: 6 worker groups: 2 started anew for their topology, 1 for a test that asked for "
        r"one, 2 replaced after a failure, 1 replaced after a test that passed; \d+\.\d s of "
        r"starts, \d+\.\d s of tests",
        line,
    )


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["-q"], True), (["-qq"], True), (["-qqq"], False), (["-k", "plain"], False)],
)
def test_counts_are_left_out(runner: Runner, arguments: list[str], shown: bool) -> None:
    """`Runner.run` gives -v, so that one -q more is needed here."""
    runner.write(test_it="def test_ranked(pprank): pass\ndef test_plain(): pass")
    out = runner.run(*GIVEN, *arguments).out
    assert ("pprank: 1 worker group: 1 started anew for its topology; " in out) == shown


def test_replaced_group_is_a_warning_after_a_test_that_passed_alone(run: Run) -> None:
    warned = re.findall(r"PytestWarning: pprank: worker group replaced .*: (.*)", run.out)
    assert warned == ["green said so"]
    assert "worker group replaced after this test: ranks 0,1: red said so" in run.failure(
        "test_spoils_and_fails[pp2]"
    )
    expected = "xfailed, pprank: worker group replaced after this test: ranks 0,1: xfail said so"
    assert expected in run.out


def test_under_xdist(runner: Runner) -> None:
    """Its main process knows of no groups, so it counts none; a failure has its command."""
    pytest.importorskip("xdist")
    runner.write(test_it="def test_it(pprank): assert 0\ndef test_passes(pprank): pass")
    run = runner.run(*GIVEN, "-n1")
    assert run.counts() == {"failed": 1, "passed": 1}
    assert "worker groups" not in run.out
    assert "worker group:" not in run.out
    failure = run.failure("test_it[pp2]")
    second = again(runner, failure)
    assert second.counts() == {"failed": 1}
    assert told(second, "test_it[pp2]") == told(run, "test_it[pp2]")
