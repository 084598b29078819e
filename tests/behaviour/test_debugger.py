"""pdb on ranks, at a pseudo-terminal: sessions as a user types them. None may hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from test_usage import usage_error

pytest.importorskip("pexpect")
from pty_sessions import Session, session

if TYPE_CHECKING:
    from tests.conftest import Runner

TESTS = """
    import os, pdb, threading
    import pytest

    @pytest.fixture
    def broken(pprank):
        value = pprank.rank
        assert value == 5, "in setup"

    @pytest.fixture
    def breaks(pprank):
        yield
        assert pprank.rank == 5, "in teardown"

    def test_stop_0(pprank):
        seen = pprank.rank
        if pprank.rank == 0:
            breakpoint()
        seen += 40
        assert pprank.gather(seen) == [40, 41]

    def test_stop_1(pprank):
        seen = pprank.rank
        if pprank.rank == 1:
            pdb.set_trace(header="look here")
        seen += 40
        assert pprank.gather(seen) == [40, 41]

    def test_stop_all(pprank):
        seen = pprank.rank
        breakpoint()
        seen += 40
        assert pprank.gather(seen) == [40, 41]

    def test_stop_by_pytest(pprank):
        if pprank.rank == 1:
            pytest.set_trace()
        pprank.barrier()

    def test_receive(pprank, process_group):
        import torch
        import torch.distributed as dist
        given = torch.full((1,), float(pprank.rank))
        if pprank.rank == 0:
            breakpoint()
            dist.send(given, 1)
        else:
            dist.recv(given, 0)
        assert given.item() == 0

    def test_both_in_turn(pprank, process_group):
        import torch
        import torch.distributed as dist
        given = torch.full((1,), float(pprank.rank))
        breakpoint()
        if pprank.rank == 0:
            dist.recv(given, 1)
        else:
            dist.send(given, 0)
        done = True

    def test_fails_0(pprank):
        where = pprank.rank
        print("printed by", where)
        assert where != 0, "red"

    def test_fails_1(pprank):
        where = pprank.rank
        print("printed by", where)
        assert where != 1, "red"

    def test_fails_everywhere(pprank):
        where = pprank.rank
        assert where == 5, "red"

    def test_fails_while_the_other_receives(pprank, process_group):
        import torch
        import torch.distributed as dist
        if pprank.rank == 0:
            value = 17
            assert value == 18, "red"
        dist.recv(torch.zeros(1), 0)

    def test_consequence(pprank):
        assert pprank.rank == 0, "red"
        pprank.barrier()

    def test_fails_in_setup(broken): pass

    def test_fails_in_teardown(breaks): pass

    @pytest.mark.xfail
    def test_expected(pprank):
        assert 0

    def test_skips(pprank):
        pytest.skip("why not")

    def test_capsys(pprank, capsys):
        print("kept by capsys")
        if pprank.rank == 0:
            breakpoint()
        seen = capsys.readouterr().out
        assert seen == "kept by capsys\\n"

    def test_capfd(pprank, capfd):
        os.write(1, b"kept by capfd\\n")
        if pprank.rank == 0:
            breakpoint()
        seen = capfd.readouterr().out
        assert seen == "kept by capfd\\n"

    def test_thread(pprank):
        def in_thread():
            inner = pprank.rank + 7
            breakpoint()
            inner += 1
        if pprank.rank == 1:
            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
        pprank.barrier()

    def test_paused_before(pprank):
        if pprank.rank == 0:
            with pprank.deadlines_paused("for a look"):
                breakpoint()
                pass
        pprank.barrier()

    def test_prints(pprank):
        print("before from", pprank.rank)
        if pprank.rank == 0:
            breakpoint()
            print("stepped over")
        print("after from", pprank.rank)

    def test_twice(pprank):
        for turn in range(2):
            if pprank.rank == 1:
                breakpoint()
            pprank.barrier()

    @pytest.mark.pprank(pp=3)
    def test_three(pprank):
        breakpoint()
        pprank.barrier()

    @pytest.mark.pprank(prefill=2, decode=1)
    def test_roles(pprank):
        if pprank.role == "decode":
            breakpoint()
        pprank.barrier()

    @pytest.mark.pprank(timeout=2)
    def test_deadline(pprank):
        if pprank.rank == 0:
            breakpoint()
        pprank.barrier()

    def test_sleeps(pprank):
        if pprank.rank == 0:
            breakpoint()
        pprank.barrier()
        import time
        print("now asleep")
        time.sleep(600)

    def test_dies_under_the_prompt(pprank):
        if pprank.rank == 1:
            breakpoint()
        while not os.path.exists("die"):
            pass
        os._exit(3)

    def test_green(pprank):
        assert pprank.gather(pprank.rank) == [0, 1]
"""
CLASSES = """
    import pdb

    class MyPdb(pdb.Pdb):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.prompt = "(Mine) "

        def do_mine(self, arg):
            self.message(f"my command, {arg}")

    class NoPdb:
        pass
"""
STOPPED = "test_stop_1"


@pytest.fixture(scope="module")
def kept(module_runner: Runner) -> Iterator[Runner]:
    """Write the tests; imports are kept from one session to the next."""
    module_runner.write(test_it=TESTS, my_pdb=CLASSES)
    yield module_runner
    command(module_runner, "stop")
    module_runner.wait_for(lambda: not module_runner.processes(), "nothing is left")


def begin(runner: Runner, tests: str, *args: str) -> Session:
    names = [f"test_it.py::{name}" for name in tests.split()]
    return Session(runner, "--pprank-keep", *args, *names)


class Debugged:
    """Starts sessions, and ends them with the test."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._sessions: list[Session] = []

    def __call__(self, tests: str, *args: str) -> Session:
        own = begin(self.runner, tests, *args)
        self._sessions.append(own)
        return own

    def close(self) -> None:
        for own in self._sessions:
            own.close()


@pytest.fixture
def debug(kept: Runner) -> Iterator[Debugged]:
    debugged = Debugged(kept)
    yield debugged
    debugged.close()


def counts(said: str) -> dict[str, int]:
    """Return the counts in the last line of a run."""
    (*_, last) = (line for line in said.splitlines() if re.search(r" in \d+\.\d+s", line))
    return {word: int(n) for n, word in re.findall(r"(\d+) ([a-z]+)", last)}


# one rank stops


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("ends", ["c", "cont", "continue"])
def test_one_rank_stops_and_goes_on(debug: Debugged, rank: int, ends: str) -> None:
    run = debug(f"test_stop_{rank}")
    run.prompt(rank)
    run.type("p 'seen', seen")
    assert f"('seen', {rank})" in run.prompt(rank)
    run.type(ends)
    assert counts(run.end()) == {"passed": 1}
    assert run.status == 0


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("ends", ["q", "quit", "EOF", "\x04"])
def test_quit_ends_the_test_and_the_next_one_is_green(
    debug: Debugged, rank: int, ends: str
) -> None:
    run = debug(f"test_stop_{rank} test_green")
    run.prompt(rank)
    if ends == "\x04":
        run.child.sendeof()
    else:
        run.type(ends)
    said = run.end()
    assert counts(said) == {"failed": 1, "passed": 1}, said
    assert (
        f"quit in the debugger: you ended the test at the prompt of rank {rank}, at test_it" in said
    )
    assert "1 replaced after a failure" in said
    assert run.status == 1


@pytest.mark.parametrize("flags", [[], ["--pdb"], ["--trace"]])
def test_exit_stops_the_run(debug: Debugged, flags: list[str]) -> None:
    test = "test_fails_0" if "--pdb" in flags else "test_stop_0"
    run = debug(f"{test} test_green", *flags)
    run.prompt(0)
    run.type("exit")
    said = run.end()
    assert "!!! _pytest.outcomes.Exit: Quitting debugger !!!" in said
    assert counts(said) == {"failed": 1}
    assert run.status == pytest.ExitCode.INTERRUPTED


def test_steps_stay_at_their_rank(debug: Debugged) -> None:
    run = debug("test_stop_1")
    assert "look here" in run.prompt(1)
    run.type("n")
    assert "assert pprank.gather(seen) == [40, 41]" in run.prompt(1)
    run.type("seen = 41")
    run.prompt(1)
    run.type("s")
    assert "--Call--" in run.prompt(1)
    run.type("r")
    assert "--Return--" in run.prompt(1)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_a_value_that_is_changed_at_the_prompt(debug: Debugged) -> None:
    run = debug("test_stop_0")
    run.prompt(0)
    run.type("seen = 7")
    run.prompt(0)
    run.type("c")
    said = run.end()
    assert counts(said) == {"failed": 1}
    assert "[47, 41] == [40, 41]" in said


def test_pytests_own_function(debug: Debugged) -> None:
    run = debug("test_stop_by_pytest")
    run.prompt(1)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_it_stops_again(debug: Debugged) -> None:
    run = debug("test_twice")
    for turn in range(2):
        run.prompt(1)
        run.type("p 'turn', turn")
        assert f"('turn', {turn})" in run.prompt(1)
        run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_a_breakpoint_that_is_set_at_the_prompt(debug: Debugged) -> None:
    run = debug("test_stop_0")
    run.prompt(0)
    line = next(n for n, text in enumerate(TESTS.splitlines(), 1) if "assert pprank.gather" in text)
    run.type(f"b {line}")
    assert f"Breakpoint 1 at {run.runner.folder}/test_it.py:{line}" in run.prompt(0)
    run.type("c")
    assert "assert pprank.gather(seen)" in run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_a_thread_stops(debug: Debugged) -> None:
    run = debug("test_thread")
    run.prompt(1)
    run.type("p 'inner', inner")
    assert "('inner', 8)" in run.prompt(1)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_line_editing(debug: Debugged) -> None:
    """The terminal itself is handed over: keys of readline work."""
    pytest.importorskip("readline")
    run = debug("test_stop_0")
    run.prompt(0)
    run.child.send("p 1111")
    run.child.send("\x01" + "\x1b[C" * 2 + "2 + \r")  # Home, two to the right
    run.until(r"\n1113\r\n")
    run.prompt(0)
    run.child.send("\x10\r")  # the last line again
    run.until(r"\n1113\r\n")
    run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_the_deadline_stands_still(debug: Debugged) -> None:
    run = debug("test_deadline")
    run.prompt(0)
    run.type("import time; time.sleep(4)")  # twice the test's timeout
    run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_the_grace_stands_still(debug: Debugged) -> None:
    run = debug("test_fails_while_the_other_receives", "--pdb", "--pprank-grace=1")
    run.prompt(0)
    run.type("import time; time.sleep(3)")
    run.prompt(0)
    run.type("p 'value', value")
    assert "('value', 17)" in run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"failed": 1}


def test_a_pause_of_the_test_outlives_the_prompt(debug: Debugged) -> None:
    run = debug("test_paused_before", "--pprank-timeout=2")
    run.prompt(0)
    run.type("n")
    run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


# several ranks stop


@pytest.mark.parametrize("first", ["c", "rank 1"])
def test_all_stop_and_get_their_turn(debug: Debugged, first: str) -> None:
    run = debug("test_stop_all")
    run.prompt(0)
    run.type(first)
    run.prompt(1)
    run.type("p 'seen', seen")
    assert "('seen', 1)" in run.prompt(1)
    run.type("c")
    if first != "c":
        run.prompt(0)
        run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_there_and_back(debug: Debugged) -> None:
    run = debug("test_three")
    run.prompt(0, of=3)
    for rank in (2, 1, 0, 1, 2):
        run.type(f"rank {rank}")
        run.prompt(rank, of=3)
    for rank in (0, 1):
        run.type("c")
        run.prompt(rank, of=3)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_quit_where_all_have_stopped(debug: Debugged) -> None:
    run = debug("test_stop_all test_green")
    run.prompt(0)
    run.type("q")
    assert counts(run.end()) == {"failed": 1, "passed": 1}


def test_ranks_says_where_all_are(debug: Debugged) -> None:
    run = debug("test_receive")
    run.prompt(0)
    run.type("ranks")
    said = run.prompt(0)
    assert re.search(r"rank 0, stage 0 of 2: stopped at test_it\.py:\d+ in test_receive", said)
    assert re.search(r"rank 1, stage 1 of 2: inside call, at test_it\.py:\d+ in test_receive", said)
    assert re.search("rank 1 waits in recv from rank 0 ", said), said
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_ranks_that_have_stopped_and_wait(debug: Debugged) -> None:
    run = debug("test_stop_all")
    run.prompt(0)
    run.type("ranks")
    said = run.prompt(0)
    assert re.search(r"rank 0, .* stopped at .* in test_stop_all \(this prompt\)", said)
    assert re.search(r"rank 1, .* stopped at .* in test_stop_all \(rank 1 goes there\)", said)
    run.type("q")
    assert counts(run.end()) == {"failed": 1}


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("rank", "this is rank 0, stage 0 of 2"),
        ("rank 0", "this is rank 0"),
        ("rank 1", "rank 1 has not stopped, no other one has; `ranks` says where all are"),
        ("rank 2", "rank: '2' is not a rank of this test: 0 to 1"),
        ("rank x", "rank: 'x' is not a rank of this test: 0 to 1"),
        ("rank == 3", "NameError"),
        ("help rank", "go on with rank K"),
    ],
)
def test_rank_explains_itself(debug: Debugged, typed: str, answer: str) -> None:
    run = debug("test_stop_0")
    run.prompt(0)
    run.type(typed)
    assert answer in run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_a_step_that_needs_another_stopped_rank(debug: Debugged) -> None:
    """The prompt moves on by itself: rank 0 waits for what rank 1 has not sent yet."""
    run = debug("test_both_in_turn")
    run.prompt(0)
    run.type("n")
    run.prompt(0)
    run.type("n")
    run.prompt(1)
    run.type("c")
    assert "done = True" in run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


# --pdb, --trace, --pprank-pdb


@pytest.mark.parametrize("rank", [0, 1])
def test_post_mortem_at_the_rank_of_the_failure(debug: Debugged, rank: int) -> None:
    run = debug(f"test_fails_{rank} test_green", "--pdb")
    before = run.prompt(rank)
    assert f"captured stdout of rank {rank}" in before
    assert f"printed by {rank}" in before
    assert "E       AssertionError: red" in before
    run.type("p 'where', where")
    assert f"('where', {rank})" in run.prompt(rank)
    run.type("c")
    said = run.end()
    assert counts(said) == {"failed": 1, "passed": 1}
    assert said.rpartition("FAILURES")[2].count(f"printed by {rank}") == 1


@pytest.mark.parametrize("ends", ["c", "q"])
def test_post_mortem_of_a_failure_of_all(debug: Debugged, ends: str) -> None:
    run = debug("test_fails_everywhere test_green", "--pdb")
    run.prompt(0)
    if ends == "c":
        run.type("c")
        run.prompt(1)
    run.type(ends)
    said = run.end()
    assert counts(said) == {"failed": 1, "passed": 1}
    assert re.search("rank [01] failed at the same place", said)


def test_post_mortem_moves_between_ranks(debug: Debugged) -> None:
    run = debug("test_fails_everywhere", "--pdb")
    run.prompt(0)
    run.type("rank 1")
    assert "traceback" in run.prompt(1)
    run.type("rank 0")
    run.prompt(0)
    run.type("p 'where', where")
    assert "('where', 0)" in run.prompt(0)
    run.type("q")
    assert counts(run.end()) == {"failed": 1}


@pytest.mark.parametrize("phase", ["setup", "teardown"])
def test_post_mortem_of_a_fixture(debug: Debugged, phase: str) -> None:
    run = debug(f"test_fails_in_{phase} test_green", "--pdb")
    assert f"in {phase}" in run.prompt(0)
    run.type("q")
    said = run.end()
    assert counts(said)["passed"] == 1 + (phase == "teardown"), said
    assert run.status == 1


def test_no_post_mortem_of_what_is_no_failure_of_its_own(debug: Debugged) -> None:
    run = debug("test_expected test_skips test_consequence", "--pdb")
    run.prompt(1)
    run.type("c")
    assert counts(run.end()) == {"failed": 1, "skipped": 1, "xfailed": 1}


def test_trace_stops_at_the_first_line_of_each_rank(debug: Debugged) -> None:
    run = debug("test_stop_by_pytest", "--trace")
    assert "if pprank.rank == 1" in run.prompt(0)
    run.type("c")
    assert "if pprank.rank == 1" in run.prompt(1)
    run.type("q")
    assert counts(run.end()) == {"failed": 1}


@pytest.mark.parametrize(
    ("tests", "flags"),
    [("test_stop_all", []), ("test_green", ["--trace"]), ("test_fails_everywhere", ["--pdb"])],
)
def test_on_one_rank_alone(debug: Debugged, tests: str, flags: list[str]) -> None:
    run = debug(tests, "--pprank-pdb=1", *flags)
    run.prompt(1)
    run.type("c")
    said = run.end()
    assert "(Pdb rank 0" not in said
    assert counts(said) == ({"failed": 1} if "--pdb" in flags else {"passed": 1})


# the terminal


def test_ctrl_c_at_the_prompt(debug: Debugged) -> None:
    run = debug("test_stop_1")
    run.prompt(1)
    run.child.send("p 'half a li")
    run.child.sendintr()
    assert "--KeyboardInterrupt--" in run.prompt(1)
    run.type("p 'seen', seen")
    assert "('seen', 1)" in run.prompt(1)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_ctrl_c_ends_a_command_at_the_prompt(debug: Debugged) -> None:
    run = debug("test_stop_0")
    run.prompt(0)
    run.type("print('sleeps'); __import__('time').sleep(600)")
    run.until("sleeps\r\n")
    run.child.sendintr()
    run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


def test_ctrl_c_while_the_ranks_run_interrupts_the_run(debug: Debugged) -> None:
    run = debug("test_sleeps", "-s")
    run.prompt(0)
    run.type("c")
    run.until("now asleep")
    run.child.sendintr()
    said = run.end()
    assert "KeyboardInterrupt" in said
    assert "where the ranks were" in said
    assert run.status == pytest.ExitCode.INTERRUPTED


@pytest.mark.parametrize("fixture", ["capsys", "capfd"])
def test_fixtures_that_capture_leave_the_prompt_alone(debug: Debugged, fixture: str) -> None:
    run = debug(f"test_{fixture}")
    run.prompt(0)
    run.type("p 40 + 2")
    assert "42" in run.prompt(0)
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


@pytest.mark.parametrize("flag", ["--capture=fd", "-s", "--pprank-live"])
def test_what_is_printed_is_not_lost(debug: Debugged, flag: str) -> None:
    run = debug("test_prints", flag, "-rP")
    before = run.prompt(0)
    run.type("n")
    assert "stepped over" in run.prompt(0)
    run.type("c")
    said = run.end()
    live = flag != "--capture=fd"
    assert ("[pp0] before from 0" in before) == live
    for rank in (0, 1):
        assert f"before from {rank}" in said
        assert f"after from {rank}" in said
    assert counts(said) == {"passed": 1}


def test_roles_are_named(debug: Debugged) -> None:
    run = debug("test_roles")
    run.until(r"\(Pdb rank 2, decode stage 0 of 1\) ")
    run.type("ranks")
    said = run.until(r"\(Pdb rank 2, decode stage 0 of 1\) ")
    assert "rank 1, prefill stage 1 of 2: inside call (waiting in barrier()" in said
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


@pytest.mark.parametrize("way", ["breakpoint", "post_mortem"])
def test_a_class_of_the_users(debug: Debugged, way: str) -> None:
    test = "test_stop_0" if way == "breakpoint" else "test_fails_0"
    run = debug(test, "--pdbcls=my_pdb:MyPdb", "--pdb")
    run.until(r"\(Mine rank 0, stage 0 of 2\) ")
    run.type("mine now")
    run.until("my command, now")
    run.until(r"\(Mine rank 0, stage 0 of 2\) ")
    run.type("q")
    assert counts(run.end()) == {"failed": 1}


def test_ipython(debug: Debugged) -> None:
    pytest.importorskip("IPython")
    run = debug("test_stop_0", "--pdbcls=IPython.terminal.debugger:TerminalPdb")
    run.until("rank 0, stage 0 of 2] ipdb>")
    run.type("p 'seen', seen")
    run.until(r"\('seen', 0\)")
    run.until("ipdb>")
    run.type("c")
    assert counts(run.end()) == {"passed": 1}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("my_pdb:Typo", "'my_pdb:Typo' cannot be imported: module 'my_pdb' has no attribute"),
        ("my_pdb:NoPdb", "'my_pdb:NoPdb' is not a subclass of pdb.Pdb"),
    ],
)
def test_a_class_that_cannot_be_used(debug: Debugged, given: str, why: str) -> None:
    run = debug("test_green", f"--pdbcls={given}")
    said = run.end()
    assert f"--pdbcls: {why}" in said
    assert run.status == 1


# deaths


@pytest.fixture
def alone(runner: Runner) -> Runner:
    """Return a runner whose processes are all of one session."""
    runner.write(test_it=TESTS)
    return runner


def test_killed_controller_leaves_nothing(alone: Runner) -> None:
    with session(alone, "test_it.py::test_stop_1") as run:
        run.prompt(1)
        alone.wait_for(lambda: not echoes(run), "readline has prepared the terminal")
        os.kill(run.child.pid, signal.SIGKILL)
        alone.wait_for(lambda: not alone.processes(), "all processes have ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ended_controller_leaves_nothing(alone: Runner, number: signal.Signals) -> None:
    with session(alone, "test_it.py::test_stop_1") as run:
        run.prompt(1)
        os.kill(run.child.pid, number)
        alone.wait_for(lambda: not alone.processes(), "all processes have ended")


def echoes(run: Session) -> bool:
    """Return whether the terminal of a run shows what is typed."""
    return bool(termios.tcgetattr(run.child.child_fd)[3] & termios.ECHO)


def test_the_rank_at_the_prompt_dies(debug: Debugged) -> None:
    """The terminal is as before then, also if line editing had changed it."""
    run = debug("test_stop_1 test_green")
    run.prompt(1)
    run.type("p 'pid', __import__('os').getpid()")
    run.until(r"\('pid', (\d+)\)")
    assert run.child.match is not None
    pid = int(run.child.match[1])
    run.prompt(1)
    run.runner.wait_for(lambda: not echoes(run), "readline has prepared the terminal")
    os.kill(pid, signal.SIGKILL)
    run.runner.wait_for(lambda: echoes(run), "the terminal is as before")
    said = run.end()
    assert counts(said) == {"failed": 1, "passed": 1}, said
    assert "rank 1 died in call: killed by SIGKILL" in said


def test_a_peer_of_the_rank_at_the_prompt_dies(debug: Debugged) -> None:
    run = debug("test_dies_under_the_prompt test_green")
    run.prompt(1)
    run.type("open('die', 'w').close()")
    said = run.end()
    assert "rank 0 died in call: it exited with code 3" in said
    assert counts(said) == {"failed": 1, "passed": 1}, said


# no terminal


@pytest.mark.parametrize("how", ["breakpoint()", "pdb.set_trace()"])
def test_no_terminal(runner: Runner, how: str) -> None:
    runner.write(test_it=f"import pdb\ndef test_it(pprank):\n    {how}")
    run = runner.run("--pp-size=2", "--pprank-device=cpu", "test_it.py")
    said = run.failure("test_it[pp2]")
    assert re.search(r"breakpoint\(\) on rank [01]: standard input is not a terminal", said)


@pytest.mark.parametrize("flag", ["--pdb", "--trace"])
def test_flags_without_a_terminal_are_told_once(runner: Runner, flag: str) -> None:
    runner.write(test_it="def test_it(pprank): assert 0\ndef test_more(pprank): assert 0")
    run = runner.run("--pp-size=2", "--pprank-device=cpu", flag, "test_it.py")
    words = f"pprank: {flag} cannot stop in the 2 ranked test(s): standard input is not a terminal"
    assert run.out.count(words) == 1
    assert run.counts()["failed"] == 2


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("x", "'x' is not the number of a rank: 0 or above"),
        ("-1", "'-1' is not the number of a rank: 0 or above"),
        ("2", "2: the selected tests have ranks 0 to 1"),
    ],
)
def test_a_rank_that_cannot_be(runner: Runner, given: str, why: str) -> None:
    assert f"--pprank-pdb: {why}" in usage_error(runner, "--pp-size=2", f"--pprank-pdb={given}")


@pytest.mark.parametrize("flags", [["--trace"], ["--pdb"], ["--pprank-pdb=1"]])
def test_not_with_xdist(runner: Runner, flags: list[str]) -> None:
    pytest.importorskip("xdist")
    error = usage_error(runner, "--pp-size=2", "-n1", *flags)
    flag = flags[0].partition("=")[0]
    assert f"{flag} is incompatible with distributing tests; try using -n0 or -n" in error


def test_breakpoint_with_xdist(runner: Runner) -> None:
    pytest.importorskip("xdist")
    runner.write(test_it="def test_it(pprank):\n    breakpoint()")
    run = runner.run("--pp-size=2", "--pprank-device=cpu", "-n1", "test_it.py")
    assert "it runs under pytest-xdist, whose workers have no terminal" in run.out


# from another terminal


@pytest.fixture
def own_tmp() -> Iterator[str]:
    """Create a folder for temporary files of these runs, short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield folder


def test_stacks_of_running_groups(alone: Runner, own_tmp: str) -> None:
    with session(alone, "test_it.py::test_stop_1", TMPDIR=own_tmp) as run:
        run.prompt(1)
        said = command(alone, "stacks", TMPDIR=own_tmp)
        assert re.search(r"^group g1 of pytest \d+: test_it.py::test_stop_1\[pp2\]$", said, re.M)
        first, second = said.split("rank 1, stage 1 of 2 (pid ")
        assert re.search(r"rank 0, stage 0 of 2 \(pid \d+\):\n.*\bgather\b", first, re.DOTALL)
        assert "test_stop_1" in first
        assert re.search(r"test_it\.py.* in test_stop_1", second)
        run.type("p 'still', seen")
        assert "('still', 1)" in run.prompt(1)
        run.type("c")
        assert counts(run.end()) == {"passed": 1}
    left = command(alone, "stacks", TMPDIR=own_tmp)
    assert left == "no worker group of this user is running\n"


def command(runner: Runner, *words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest_pprank", *words],
        env=runner.environment(**environment),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout
