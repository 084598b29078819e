"""Changes that a test leaves behind are reported with its name, and do not affect the next test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

TESTS = """
    import os
    import signal
    import threading
    import unittest
    from datetime import timedelta

    import pytest
    import torch
    import torch.distributed as dist

    SOON = timedelta(seconds=0.3)
    KEPT = []


    def test_uneven_groups(process_group, pprank):
        if pprank.rank == 1:
            dist.new_group([1])


    def test_after_uneven_groups(process_group):
        dist.barrier(dist.new_group([0, 1]))


    @pytest.mark.pprank(sanitize="none")
    def test_uneven_groups_unwatched(process_group, pprank):
        if pprank.rank == 1:
            dist.new_group([1])


    def test_groups_that_are_in_order(process_group, pprank):
        dist.new_group([pprank.rank])
        if pprank.rank == 1:
            dist.new_group([1], use_local_synchronization=True)
        dist.barrier(dist.new_group([0, 1]))


    def test_destroys_a_group_of_both(process_group, pprank):
        both = dist.new_group([0, 1])
        pprank.barrier()
        if pprank.rank == 1:
            dist.destroy_process_group(both)


    def test_destroys_the_default_group(process_group):
        dist.destroy_process_group()


    def test_leaves_a_thread(process_group):
        def pump():
            dist.all_reduce(torch.ones(1))
            reduced.set()
            threading.Event().wait()

        reduced = threading.Event()
        threading.Thread(target=pump, daemon=True, name="pump").start()
        reduced.wait()


    def test_leaves_variables(pprank):
        os.environ["PPRANK_EVEN"] = "1"
        if pprank.rank == 1:
            os.environ["PPRANK_UNEVEN"] = "1"


    def test_compiles_on_one_rank(pprank):
        if pprank.rank == 1:
            os.environ["TRITON_PTXAS_PATH"] = "/found/by/torch"


    def test_ranks_share_a_temporary_folder(pprank):
        (folder,) = {*pprank.gather(os.environ["TMPDIR"])}
        assert os.path.isdir(folder)


    def test_after_variables():
        assert "PPRANK_UNEVEN" not in os.environ


    def test_leaves_settings(pprank):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        if pprank.rank == 1:
            os.chdir("/")
            signal.signal(signal.SIGTERM, lambda *_: None)


    def test_after_settings(pprank):
        assert torch.ones(1).dtype == torch.float32
        assert torch.ones(1).device.type == "cpu"
        assert os.getcwd() != "/"
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


    @pytest.fixture
    def double():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(before)


    def test_settings_of_a_fixture(double, request, pprank):
        torch.set_default_dtype(torch.float16)
        request.getfixturevalue("process_group")


    def test_timed_out_barrier(process_group, pprank):
        if pprank.rank == 0:
            with pytest.raises(RuntimeError):
                dist.monitored_barrier(timeout=SOON)


    def test_after_timed_out_barrier(process_group):
        dist.monitored_barrier()


    class TestUnittest(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def ranks(self, process_group, pprank):
            self.rank = pprank.rank

        @pytest.mark.pprank
        def test_other_mismatches(self):
            slow = dist.new_group(timeout=SOON)
            if self.rank == 0:
                self.assertRaises(RuntimeError, dist.barrier, slow)
                for late in KEPT[:], KEPT:  # one handle is gone after the test, one is not
                    late.append(dist.all_reduce(torch.ones(1), async_op=True))
                    self.assertRaises(RuntimeError, late[0].wait, SOON)

        @pytest.mark.pprank
        def test_refused(self):
            if self.rank == 0:
                with self.assertRaisesRegex(RuntimeError, "single tensor"):
                    dist.group.WORLD.send([torch.ones(2)] * 2, 1, 0)

        @pytest.mark.pprank
        def test_unexplained(self):
            slow = dist.new_group(timeout=SOON)
            if self.rank == 0:
                self.assertRaises(RuntimeError, dist.barrier, slow)
                self.addCleanup(dist.send, torch.ones(2, 8), 1)
                self.doCleanups()  # the line that is told
            else:
                dist.recv(torch.empty(16), 0)


    @pytest.fixture(params=range(4))
    def own_group(request):
        dist.init_process_group("gloo")
        yield
        dist.destroy_process_group()


    @pytest.mark.pprank
    def test_group_of_its_own(own_group):
        dist.barrier()
        assert dist.get_world_size() == 2


    def test_last(process_group):
        dist.barrier()
"""
ALONE = """
    import pytest
    from torch import distributed as dist
    from torch.distributed import init_process_group as begin


    @pytest.fixture(params=["a", "b"])
    def own_group(request, tmp_path):
        begin("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


    def test_plain():
        pass


    def test_alone(own_group):
        dist.barrier()
"""
FAILED = {"test_uneven_groups[pp2]", "TestUnittest::test_unexplained"}
REPLACED = {
    "test_uneven_groups_unwatched": "torch.distributed has created more groups on some ranks than "
    "on rank 0 (1 more on rank 1): every rank must call new_group",
    "test_destroys_a_group_of_both": "of ranks 0,1 was destroyed on rank 1 alone: destroy it",
    "test_destroys_the_default_group": "ranks 0,1: the default process group, which other tests",
    "test_leaves_a_thread": "ranks 0,1: thread 'pump', which the test has started",
    "test_leaves_variables": "environment variable PPRANK_UNEVEN was left changed on rank 1 alone",
}


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=TESTS, test_alone=ALONE)
    limits = ["--pprank-grace", "2", "--pprank-timeout", "30"]
    return module_runner.run("--pp-size", "2", "--pprank-device", "cpu", *limits)


def warning(run: Run, test: str) -> list[str]:
    """Return the warning about a test; a paragraph of the summary begins with its tests."""
    summary = run.out.partition("warnings summary")[2].partition("\n-- Docs")[0]
    return [part for part in summary.split("\n\n") if f"::{test}" in part.partition("\n  ")[0]]


def line_of(words: str) -> int:
    return 1 + next(n for n, line in enumerate(TESTS.splitlines()) if words in line)


def test_outcomes(run: Run) -> None:
    failed = {line.split("::", 1)[1].split()[0] for line in run.out.splitlines()
              if line.startswith("test_") and " FAILED" in line}  # fmt: skip
    assert failed == FAILED, run.out


def test_groups_that_one_rank_creates(run: Run) -> None:
    findings = run.findings("test_uneven_groups[pp2]")
    assert "p2p: groups of torch.distributed do not fit together:" in findings
    assert "rank 0 created 0, number 1: none" in findings
    place = f"test_it.py:{line_of('dist.new_group([1])')} in test_uneven_groups"
    assert f"rank 1 created 1, number 1: new_group of one rank ({place})" in findings
    assert "cure: every rank must call new_group for each group" in findings
    assert "worker group replaced after this test: torch.distributed has created more" in findings


def test_not_replaced(run: Run) -> None:
    assert warning(run, "test_compiles_on_one_rank[") == []


@pytest.mark.parametrize("test", REPLACED)
def test_replaced(run: Run, test: str) -> None:
    (text,) = warning(run, f"{test}[")
    assert "worker group replaced after this test: " in text
    assert REPLACED[test] in text


def test_put_back(run: Run) -> None:
    (text,) = warning(run, "test_leaves_settings[")
    assert "it was put back for the next one: torch's default dtype: torch.float64 instead" in text
    assert "torch's default device: meta instead of cpu (ranks 0,1)" in text
    assert "the current directory: / instead of " in text
    assert "<lambda> instead of SIG_DFL (rank 1)" in text


def test_nothing_else_is_told(run: Run) -> None:
    warned = {*REPLACED, "test_leaves_settings", "test_alone"}
    assert run.counts()["warnings"] == len(warned), run.out
    assert "EVEN was" not in run.out.replace("UNEVEN was", "")


def test_mismatch_that_no_exception_explains(run: Run) -> None:
    findings = run.findings("TestUnittest.test_unexplained")
    place = f"test_it.py:{line_of('the line that is told')} in test_unexplained"
    assert f"rank 0 sent 1, number 1: float32[2, 8] ({place})" in findings
    assert "collectives" not in findings


def test_group_that_a_plain_test_begins(run: Run) -> None:
    (text,) = warning(run, "test_alone[a]")
    assert "this test (and 1 other test) began a torch.distributed group of one rank" in text
    assert "mark it, its class or its module @pytest.mark.pprank," in text
