"""Findings of the simulated device fail the test: the sanitizers h2d and streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

TESTS = """
    from types import SimpleNamespace

    import pytest
    import torch

    pytestmark = pytest.mark.pprank(device="sim")


    class Batch:
        pass


    def race(pprank):
        batch = Batch()
        batch.hidden = torch.zeros(4, 2, device="sim")
        sim = torch.get_device_module("sim")
        sim.synchronize()
        if pprank.rank == 1:
            with sim.stream(sim.Stream()):
                batch.hidden.add_(1)
            write(batch)
        return batch


    def write(batch):
        batch.hidden.mul_(2)


    def test_race(process_group, pprank):
        race(pprank)


    def test_staging(process_group, pprank):
        ids = [torch.ones(3, pin_memory=True)]
        there = ids[0].to("sim", non_blocking=True)
        ids[0].fill_(2)
        assert (there + 0).tolist() == [2, 2, 2]


    def test_arrives_too_late(process_group):
        with torch.sim.stream(torch.sim.Stream()):
            there = torch.ones(3, pin_memory=True).to("sim", non_blocking=True)
        assert not torch.isnan(there + 0).any()


    def test_ordered(process_group, pprank):
        there = torch.ones(3, pin_memory=True).to("sim", non_blocking=True)
        assert there.tolist() == [1, 1, 1]


    @pytest.mark.pprank(sanitize=["h2d"])
    def test_watched_by_others(process_group, pprank):
        race(pprank)


    def test_allowed(process_group, pprank):
        race(pprank)


    @pytest.mark.pprank(device="cpu")
    def test_on_cpu(process_group, pprank):
        pass
"""
ALLOW = """
    - sanitizer: streams
      match: [in race, in write]
      test: "*test_allowed*"
      reason: to see that it is
"""


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=TESTS)
    (module_runner.folder / "allow.yaml").write_text(ALLOW)
    return module_runner.run("--pp-size", "2", "--pprank-sanitize-allow", "allow.yaml")


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_race", "FAILED"),
        ("test_staging", "FAILED"),
        ("test_arrives_too_late", "FAILED"),
        ("test_ordered", "PASSED"),
        ("test_watched_by_others", "PASSED"),
        ("test_allowed", "PASSED"),
        ("test_on_cpu", "PASSED"),
    ],
)
def test_outcome(run: Run, test: str, outcome: str) -> None:
    assert run.outcome(f"{test}[pp2]") == outcome


def test_what_is_told(run: Run) -> None:
    race = run.failure("test_race[pp2]")
    assert "streams: unordered: Batch.hidden (float32[4, 2]): aten::mul_.Tensor writes" in race
    assert "nothing orders that after: aten::add_.Tensor writes float32[4, 2], on stream" in race
    assert "on rank 1\n" in race
    earlier, later = race.partition("on rank 1\n")[::2]
    assert "in race" in earlier
    assert "in write" in later
    assert "cure: let the second stream wait for the first" in race
    staging = run.failure("test_staging[pp2]")
    assert "h2d: staging rewritten: ids[0] (float32[3]): Tensor.fill_ writes the source" in staging
    assert "on ranks 0,1\n" in staging


def test_what_fails_by_itself_says_why(run: Run) -> None:
    late = run.failure("test_arrives_too_late[pp2]")
    assert "isnan" in late.partition("- sanitizers -")[0]
    assert "h2d: copy in flight: there of" in late.partition("- sanitizers -")[2]
