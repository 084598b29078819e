"""Ranked tests behave like tests: one run of many small ones, checked in many respects."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def started(pprank):
    starts = []
    yield starts
    # torn down once, by the last test of the worker group
    print("session fixture down on", pprank.rank)

def pytest_pprank_rank_started(pprank):
    pprank.seen_by_conftest = pprank.rank

@pytest.fixture(scope="module")
def module_value(started):
    started.append("module")
    return started
"""

SOURCE = """
import os
import pytest

def test_plain_runs_here():
    assert "RANK" not in os.environ

def test_who_am_i(pprank):
    assert (pprank.rank, pprank.world_size) == (int(os.environ["RANK"]), 2)
    assert (pprank.stage, pprank.num_stages, pprank.role) == (pprank.rank, 2, "pp")
    assert pprank.is_first_stage == (pprank.rank == 0)
    assert pprank.is_last_stage == (pprank.rank == 1)
    assert pprank.device == "cpu"
    assert pprank.seen_by_conftest == pprank.rank

def test_control_plane(pprank):
    pprank.barrier()
    assert pprank.gather({"from": pprank.rank}) == [{"from": 0}, {"from": 1}]
    assert pprank.broadcast(["x"] if pprank.rank == 1 else None, src=1) == ["x"]

def test_bad_source(pprank):
    with pytest.raises(Exception, match="src=2 is not a rank: 0 to 1"):
        pprank.broadcast(1, src=2)

def test_process_group(process_group, pprank):
    import torch, torch.distributed as dist
    total = torch.full((3,), float(pprank.rank + 1))
    dist.all_reduce(total)
    assert total.tolist() == [3.0] * 3
    if pprank.rank == 0:
        dist.send(torch.arange(4), dst=1)
    else:
        received = torch.empty(4, dtype=torch.int64)
        dist.recv(received, src=0)
        assert received.tolist() == [0, 1, 2, 3]

def test_listens_on_loopback_only(process_group):
    from pathlib import Path
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    inodes = {target[len("socket:["):-1] for target in targets if target.startswith("socket:[")}
    rows = [line.split() for name in ("tcp", "tcp6")
            for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
    assert listening, "gloo listens somewhere"
    assert all(address.startswith("0100007F:") for address in listening), listening

@pytest.mark.parametrize("x", ["a", "b"])
def test_parametrized(pprank, x):
    assert x in "ab"

class TestClass:
    @pytest.fixture(autouse=True)
    def prepared(self):
        self.ready = True

    def test_method(self, pprank):
        assert self.ready

def test_session_fixture_lives(started, module_value):
    assert module_value is started
    started.append(1)

def test_session_fixture_still_lives(started):
    assert started == ["module", 1]

def test_rewritten_assertion(pprank):
    left = {"rank": pprank.rank}
    assert left == {"rank": 0}

def test_output(pprank, capsys):
    print("hidden from the report")
    assert capsys.readouterr().out == "hidden from the report\\n"
    print(f"printed by {pprank.rank}")
    assert 0

def test_logging(pprank):
    import logging
    logging.getLogger("mine").warning("logged by %d", pprank.rank)
    assert 0

def test_tmp_path(tmp_path, pprank):
    assert len(set(pprank.gather(str(tmp_path)))) == 2
    (tmp_path / "file-for-later").touch()

def test_workdir_is_shared_and_private(pprank):
    assert len(set(pprank.gather(pprank.workdir))) == 1
    assert pprank.workdir.stat().st_mode & 0o777 == 0o700

def test_properties(pprank, record_property):
    record_property("same", 1)
    record_property("rank", pprank.rank)

def test_warns(pprank):
    import warnings
    warnings.warn("careful", UserWarning)

@pytest.mark.skip(reason="not today")
def test_skipped(pprank): pass

def test_skipped_on_one(pprank):
    if pprank.rank == 1:
        pytest.skip("only here")

@pytest.mark.xfail(reason="known")
def test_xfailed(pprank):
    assert 0

@pytest.mark.xfail(reason="known on one")
def test_xfailed_on_one(pprank):
    assert pprank.rank == 0

@pytest.mark.xfail(strict=True, reason="gone")
def test_xpassed_strictly(pprank): pass

def test_one_fails_while_the_other_waits(pprank):
    if pprank.rank == 0:
        raise ValueError("boom")
    pprank.barrier()

def test_different_meetings(pprank):
    pprank.barrier() if pprank.rank else pprank.gather(1)

def test_setup_fails_on_one(bad_on_one):
    raise AssertionError("must not run anywhere")

@pytest.fixture
def bad_on_one(pprank):
    if pprank.rank == 1:
        raise RuntimeError("no fixture for you")

def test_teardown_fails(bad_teardown): pass

@pytest.fixture
def bad_teardown(pprank):
    yield
    assert pprank.rank == 0, "not torn down"

def test_exits(pprank):
    raise SystemExit(3)

@pytest.mark.pprank(pp=3)
def test_own_size(pprank):
    assert pprank.world_size == 3

@pytest.mark.pprank(fresh=True)
def test_fresh(started):
    assert started == []

def test_after_all(pprank):
    assert len(pprank.gather(0)) == 2

def test_last_plain(): pass
"""

UNITTEST = """
import unittest
import pytest

@pytest.mark.pprank
class TestCase(unittest.TestCase):
    def test_in_a_test_case(self):
        from pytest_pprank.rank.context import current_rank
        self.assertEqual(current_rank().world_size, 2)
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(conftest=CONFTEST, test_it=SOURCE, test_case=UNITTEST)
    flags = ["-p", "pytest_pprank", "--pp-size=2", "--pprank-device=cpu", "--junitxml=out.xml"]
    flags += ["-o", "junit_logging=all", "--basetemp=bt"]
    flags += ["-rA", "--durations=0", "--durations-min=0"]  # also tests that take no time
    return module_runner.run(*flags, "test_it.py", "test_case.py")


PASSED = [
    "test_plain_runs_here",
    "test_who_am_i[pp2]",
    "test_control_plane[pp2]",
    "test_bad_source[pp2]",
    "test_process_group[pp2]",
    "test_listens_on_loopback_only[pp2]",
    "test_parametrized[a-pp2]",
    "test_parametrized[b-pp2]",
    "test_method[pp2]",
    "test_session_fixture_lives[pp2]",
    "test_session_fixture_still_lives[pp2]",
    "test_tmp_path[pp2]",
    "test_workdir_is_shared_and_private[pp2]",
    "test_properties[pp2]",
    "test_warns[pp2]",
    "test_own_size[pp3]",
    "test_fresh[pp2]",
    "test_after_all[pp2]",
    "test_last_plain",
    "test_in_a_test_case",
]


@pytest.mark.parametrize("test", PASSED)
def test_passes(run: Run, test: str) -> None:
    assert run.outcome(test) == "PASSED"


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_skipped[pp2]", "SKIPPED"),
        ("test_xfailed[pp2]", "XFAIL"),
        ("test_xfailed_on_one[pp2]", "XFAIL"),
        ("test_xpassed_strictly[pp2]", "FAILED"),
        ("test_setup_fails_on_one[pp2]", "ERROR"),
        ("test_exits[pp2]", "FAILED"),
    ],
)
def test_ends(run: Run, test: str, outcome: str) -> None:
    assert run.outcome(test) == outcome


def test_nothing_else_happened(run: Run) -> None:
    assert run.ret == 1
    # a failing teardown is an error in addition to the passed test, as in pytest
    assert run.counts() == {
        "failed": 8,
        "passed": len(PASSED) + 1,
        "skipped": 1,
        "xfailed": 2,
        "errors": 2,
        "warning": 1,
    }


def test_header(run: Run) -> None:
    assert "pprank: pp=2 device=cpu, torch " in run.out


def test_failures_are_pytests_own(run: Run) -> None:
    block = run.failure("test_rewritten_assertion[pp2]")
    assert 'assert left == {"rank": 0}' in block
    assert "assert {'rank': 1} == {'rank': 0}" in block
    assert "test_it.py:" in block
    assert "failed on rank 1 of 2" in block


def test_output_in_a_section_per_rank(run: Run) -> None:
    block = run.failure("test_output[pp2]")
    for rank in (0, 1):
        assert f"Captured stdout call (rank {rank})" in block
        assert f"printed by {rank}" in block
    assert "failed on ranks 0,1 of 2" in block
    assert block.count("assert 0") == 2  # the source line and the error: shown once
    assert "logged by 1" in run.failure("test_logging[pp2]")


def test_skip_on_one_rank_names_both(run: Run) -> None:
    block = run.failure("test_skipped_on_one[pp2]")
    assert "rank 0 passed" in block
    assert "rank 1 skipped: Skipped: only here" in block


def test_the_culprit_is_named_and_the_victim_folded(run: Run) -> None:
    block = run.failure("test_one_fails_while_the_other_waits[pp2]")
    assert "ValueError: boom" in block
    assert "rank 1 failed as a consequence" in block
    assert "waits in barrier() at test_it.py:" in block
    assert "FAILED test_it.py::test_one_fails_while_the_other_waits[pp2] - [rank 0] Val" in run.out


def test_two_meetings_never_pair(run: Run) -> None:
    block = run.failure("test_different_meetings[pp2]")
    assert "in vain: rank 1 is in barrier() at" in block


def test_setup_failure_on_one_rank(run: Run) -> None:
    block = run.failure("test_setup_fails_on_one[pp2]")
    assert "no fixture for you" in block
    assert "failed on rank 1 of 2" in block
    assert "must not run" not in block.replace('raise AssertionError("must not run', "")


def test_teardown_failure(run: Run) -> None:
    assert "not torn down" in run.failure("test_teardown_fails[pp2]")


def test_session_fixtures_are_torn_down_with_the_group(run: Run) -> None:
    assert run.out.count("session fixture down on 0") >= 1


def test_warnings_are_told_once(run: Run) -> None:
    assert run.out.count("UserWarning: careful") == 1


def test_durations(run: Run) -> None:
    assert re.search(r"\d\.\d\ds (setup|call) +test_it.py::test_process_group\[pp2\]", run.out)


@pytest.mark.usefixtures("run")
def test_junit(module_runner: Runner) -> None:
    from xml.etree import ElementTree

    suite = ElementTree.parse(module_runner.folder / "out.xml").getroot()[0]
    cases = {case.get("name"): case for case in suite}
    assert suite.get("failures") == "8"
    properties = {
        p.get("name"): p.get("value") for p in cases["test_properties[pp2]"].iter("property")
    }
    assert properties == {
        "pprank_topology": "pp=2 device=cpu",
        **{"same[pp0]": "1", "rank[pp0]": "0", "same[pp1]": "1", "rank[pp1]": "1"},
    }
    output = "".join(str(e.text) for e in cases["test_output[pp2]"].iter("system-out"))
    assert "printed by 0" in output
    assert "printed by 1" in output


@pytest.mark.usefixtures("run")
def test_what_a_test_wrote_can_be_looked_at_afterwards(module_runner: Runner) -> None:
    kept = module_runner.folder.glob("bt/g*-pp[01]/*/file-for-later")
    assert len({path.resolve() for path in kept}) == 2


@pytest.mark.usefixtures("run")
def test_nothing_is_left_behind(module_runner: Runner) -> None:
    assert module_runner.processes() == {}


PLAIN_BEFORE = """
import pytest

@pytest.fixture(scope="module")
def bad_teardown():
    yield
    raise RuntimeError("torn down badly")

def test_plain(bad_teardown): pass

def test_ranked(pprank): pass
"""


def test_plain_tests_around_ranked_ones(module_runner: Runner) -> None:
    """The last plain test of a file leaves the file's fixtures to the ranked test after it."""
    module_runner.write(test_around=PLAIN_BEFORE, test_behind="def test_behind(): pass")
    run = module_runner.run(
        "-p", "pytest_pprank", "--pp-size=1", "-rA", "test_around.py", "test_behind.py"
    )
    assert run.outcome("test_behind") == "PASSED"
    assert "RuntimeError: torn down badly" in run.out
    assert run.counts() == {"passed": 3, "error": 1}
