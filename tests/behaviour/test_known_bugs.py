"""Whole runs of tests that show known bugs of SGLang: as expected, fixed by now, or red."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

CONFTEST = """
    from pathlib import Path

    from pytest_pprank.known import bugs, marks

    BUGS = bugs.read(Path(__file__).with_name("bugs.yaml"))
    bugs.known_bugs = lambda: BUGS
    marks.sglang_version = lambda: "0.5.19"
"""
BUGS = """
- id: of-an-exception
  versions: ">=0.5.13"
  seen: [0.5.19]
  symptom: a stage keeps a request
  where: ["a.py: f"]
  see: [test_it.py::test_shows]
  raises: AssertionError
  says: not balanced
  link: ''
- id: of-a-sanitizer
  versions: ">=0.5.13"
  seen: [0.5.19]
  symptom: a message is too long
  where: ["a.py: f"]
  see: [test_it.py::test_finding]
  raises: sanitizer p2p
  says: "float32[16]"
  link: ''
- id: of-the-past
  versions: ">=0.5.13,<0.5.19"
  seen: [0.5.13]
  symptom: it was so
  where: ["a.py: f"]
  see: [test_it.py::test_past]
  raises: AssertionError
  says: not balanced
  link: ''
- id: to-be-red
  versions: ">=0.5.19,<0.5.20"
  seen: [0.5.19]
  symptom: the profiler fails
  where: ["a.py: f"]
  see: [test_it.py::test_red]
  raises: RuntimeError
  says: Failed to profile
  link: ''
  red: true
"""
TESTS = """
    import pytest
    import torch
    import torch.distributed as dist


    def exchange(rank, length):
        if rank == 0:
            dist.send(torch.ones(2, 8), 1)
        else:
            dist.recv(torch.empty(length), 0)


    @pytest.mark.pprank(known_bug="of-an-exception")
    def test_shows(pprank):
        assert pprank.rank == 0, "KV is not balanced"


    @pytest.mark.pprank(known_bug="of-an-exception")
    def test_another_failure(pprank):
        assert pprank.rank == 0, "the tokens differ"


    @pytest.mark.pprank(known_bug="of-an-exception")
    def test_mended(pprank):
        pass


    @pytest.mark.pprank(known_bug="of-a-sanitizer")
    def test_finding(process_group, pprank):
        exchange(pprank.rank, 16)


    @pytest.mark.pprank(known_bug="of-a-sanitizer")
    def test_another_finding(process_group, pprank):
        exchange(pprank.rank, 17)


    @pytest.mark.pprank(known_bug="of-a-sanitizer")
    def test_no_finding(process_group):
        dist.barrier()


    @pytest.mark.pprank(known_bug="of-an-exception")
    def test_finding_in_place_of_an_exception(process_group, pprank):
        exchange(pprank.rank, 16)


    @pytest.mark.pprank(known_bug="of-the-past")
    def test_past(pprank):
        pass


    @pytest.mark.pprank(known_bug="to-be-red")
    def test_red(pprank):
        if pprank.rank == 0:
            raise RuntimeError("Failed to profile prefill latency")
        pprank.barrier()


    @pytest.mark.pprank(known_bug="to-be-red")
    def test_red_for_another_reason(pprank):
        raise RuntimeError("no such seam")
"""
MENDED = "did not show in SGLang 0.5.19: mended in this version: move its upper bound in "


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(conftest=CONFTEST, test_it=TESTS)
    (module_runner.folder / "bugs.yaml").write_text(BUGS)
    return module_runner.run("--pp-size", "2", "--pprank-device", "cpu", "-ra")


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_shows", "XFAIL"),
        ("test_another_failure", "FAILED"),
        ("test_mended", "FAILED"),
        ("test_finding", "XFAIL"),
        ("test_another_finding", "FAILED"),
        ("test_no_finding", "FAILED"),
        ("test_finding_in_place_of_an_exception", "FAILED"),
        ("test_past", "PASSED"),
        ("test_red", "FAILED"),
        ("test_red_for_another_reason", "FAILED"),
    ],
)
def test_ends(run: Run, test: str, outcome: str) -> None:
    assert run.outcome(f"{test}[pp2]") == outcome


@pytest.mark.parametrize(
    ("test", "bug"), [("test_mended", "of-an-exception"), ("test_no_finding", "of-a-sanitizer")]
)
def test_one_that_does_not_show_says_what_to_do(run: Run, test: str, bug: str) -> None:
    words = f"[XPASS(strict)] known bug {bug} {MENDED}"
    assert words in run.failure(f"{test}[pp2]")
    (line,) = [
        line for line in run.out.splitlines() if line.startswith(f"FAILED test_it.py::{test}[")
    ]
    assert "[ranks 0,1] [XPASS(strict)] known b" in line


def test_one_that_shows_gives_its_id(run: Run) -> None:
    assert "known bug of-an-exception: a stage keeps a request" in run.out


def test_a_finding_that_is_another_one_is_told(run: Run) -> None:
    assert "float32[17]" in run.findings("test_another_finding[pp2]")


def test_a_red_one_is_named(run: Run) -> None:
    words = "known bug to-be-red: the profiler fails (python -m pytest_pprank known-bugs)"
    assert words in run.failure("test_red[pp2]")
    assert "known bug" not in run.failure("test_red_for_another_reason[pp2]")
