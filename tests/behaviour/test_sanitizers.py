"""A finding fails its test under a heading of its own, unless it is allowed or expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

TESTS = """
    import pytest
    import torch
    import torch.distributed as dist


    def exchange(rank):
        if rank == 0:
            dist.send(torch.ones(2, 8), 1)
        else:
            dist.recv(torch.empty(16), 0)


    def test_other_shapes(process_group, pprank):
        exchange(pprank.rank)


    def test_in_order(process_group, pprank):
        if pprank.rank == 0:
            dist.isend(torch.ones(4), 1).wait()
        else:
            dist.recv(torch.empty(4), 0)
        dist.barrier()


    def test_handle_is_lost(process_group, pprank):
        work = dist.isend(torch.ones(4), 1) if pprank.rank == 0 else None
        if pprank.rank:
            dist.recv(torch.empty(4), 0)
        pprank.barrier()
        del work


    @pytest.mark.pprank(sanitize="none")
    def test_not_watched(process_group, pprank):
        exchange(pprank.rank)


    @pytest.mark.pprank(sanitize=["logs"])
    def test_watched_by_others(process_group, pprank):
        exchange(pprank.rank)


    @pytest.mark.xfail(reason="known", strict=True)
    def test_expected(process_group, pprank):
        exchange(pprank.rank)


    @pytest.mark.xfail(reason="known", strict=True, raises=ValueError)
    def test_other_failure_expected(process_group, pprank):
        exchange(pprank.rank)


    @pytest.fixture
    def ends_well(pprank):
        yield
        assert not pprank.failed, "its fixtures leave things as after a failure"


    @pytest.mark.xfail(reason="known", strict=True, raises=ValueError)
    def test_passes_for_its_fixtures(ends_well):
        pass


    def test_allowed(process_group, pprank):
        exchange(pprank.rank)


    def test_failure_comes_first(process_group, pprank):
        work = dist.isend(torch.ones(4), 1) if pprank.rank == 0 else None
        if pprank.rank:
            dist.recv(torch.empty(4), 0)
        pprank.barrier()
        del work
        dist.barrier()
        assert pprank.world_size == 3
"""
ALLOW = """
    - sanitizer: p2p
      match: "float32[16]"
      test: "*test_allowed*"
      reason: to see that it is
    - {sanitizer: p2p, match: no such thing, reason: it was put right}
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=TESTS)
    (module_runner.folder / "allow.yaml").write_text(ALLOW)
    arguments = ["--pprank-sanitize-allow", "allow.yaml", "--junitxml", "junit.xml"]
    return module_runner.run("--pp-size", "2", "--pprank-device", "cpu", *arguments)


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_other_shapes", "FAILED"),
        ("test_in_order", "PASSED"),
        ("test_handle_is_lost", "FAILED"),
        ("test_not_watched", "PASSED"),
        ("test_watched_by_others", "PASSED"),
        ("test_expected", "XFAIL"),
        ("test_other_failure_expected", "FAILED"),
        ("test_allowed", "PASSED"),
        ("test_failure_comes_first", "FAILED"),
    ],
)
def test_outcome(run: Run, test: str, outcome: str) -> None:
    assert run.outcome(f"{test}[pp2]") == outcome


def test_what_is_told(run: Run) -> None:
    shapes = run.failure("test_other_shapes[pp2]")
    assert "sanitizer: p2p: messages from rank 0 to rank 1" in shapes
    assert "- sanitizers -" in shapes
    assert "rank 0 sent 1, number 1: float32[2, 8] (test_it.py:" in shapes
    assert "rank 1 received 1, number 1: float32[16] (test_it.py:" in shapes
    handle = run.failure("test_handle_is_lost[pp2]")
    assert "p2p: isend of float32[4] to rank 1 (default group, tag 0) was never waited" in handle
    assert "on rank 0\n" in handle
    assert "at test_it.py:" in handle
    assert "cure: keep the handle" in handle


def test_finding_beside_a_failure(run: Run) -> None:
    failure = run.failure("test_failure_comes_first[pp2]")
    assert "assert 2 == 3" in failure.partition("- sanitizers -")[0]
    assert "isend of float32[4]" in failure.partition("- sanitizers -")[2]


def test_allowance_that_matches_nothing_is_told(run: Run) -> None:
    useless = "this entry matched nothing in this run: p2p: 'no such thing' (it was put right)"
    assert useless in run.out
    assert run.out.count("this entry matched nothing") == 1


def test_unexpected_pass_is_no_failure_on_the_ranks(run: Run) -> None:
    failure = run.failure("test_passes_for_its_fixtures[pp2]")
    assert "[XPASS(strict)] known" in failure
    assert "as after a failure" not in run.out


def test_verdict_has_a_name(run: Run, module_runner: Runner) -> None:
    assert run.ret == 1
    report = (module_runner.folder / "junit.xml").read_text()
    assert report.count('name="pprank_verdict" value="sanitizer"') == 3


def test_unknown_name_is_a_usage_error(module_runner: Runner) -> None:
    wrong = module_runner.run("--pp-size", "2", "--pprank-sanitize", "p2q")
    assert wrong.ret == 4
    assert "--pprank-sanitize: there is no sanitizer 'p2q' (did you mean 'p2p'?)" in wrong.out
