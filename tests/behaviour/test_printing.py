"""Output of ranks is shown per rank and per test, readable and bounded, whatever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SOURCE = """
import os, sys
import pytest

def test_flood(pprank):
    if pprank.rank == 0:
        block = (b"flood " * 10 + b"\\n") * 1000
        for _ in range((1 << 30) // len(block)):
            os.write(1, block)
        print("the end of the flood")
    assert pprank.rank == 1

def test_junk(pprank):
    os.write(1, b"\\xff\\xfe\\x00 junk \\x1b[31m \\n")
    os.write(2, b"\\xc3")
    print("surrogate", "\\udc80")
    assert 0

def test_a_long_diff(pprank):
    assert ["x" * 5_000_000, 1] == ["x" * 5_000_000, 2]

def test_last_words(pprank):
    print("on stdout, no newline", end="")
    sys.stderr.write("on stderr")
    if pprank.rank == 1:
        os._exit(3)
    pprank.barrier()

def test_with_capsys(pprank, capsys):
    print("captured by the test")
    assert capsys.readouterr().out == "captured by the test\\n"

def test_with_capfd(pprank, capfd):
    os.write(1, b"captured by the test")
    assert capfd.readouterr().out == "captured by the test"

def test_mostly_alike(pprank):
    for step in range(4):
        print("step", step)
    print("this is rank", pprank.rank)
    assert 0

@pytest.fixture
def says(pprank):
    print("in setup")
    yield
    print("in teardown")

def test_phases(says):
    print("in call")
    assert 0
"""

FLAGS = ["--pp-size=2", "--pprank-device=cpu"]


@pytest.fixture(scope="module")
def run(module_runner: Runner) -> Run:
    module_runner.write(test_it=SOURCE)
    # on a busy machine the flood takes longer than the peer would wait by default
    return module_runner.run(*FLAGS, "--pprank-grace=120")


def test_a_flood_is_kept_to_its_end(run: Run) -> None:
    block = run.failure("test_flood[pp2]")
    assert "the end of the flood" in block
    assert "bytes before this are left out" in block
    assert len(block) < 1 << 20


def test_junk_is_made_readable(run: Run) -> None:
    block = run.failure("test_junk[pp2]")
    assert "\ufffd\ufffd\x00 junk" in block
    assert "surrogate ?" in block
    assert "Captured stderr call (ranks 0,1)" in block


def test_a_long_diff_arrives(run: Run) -> None:
    assert "At index 1 diff: 1 != 2" in run.failure("test_a_long_diff[pp2]")


def test_last_words_are_kept(run: Run) -> None:
    block = run.failure("test_last_words[pp2]")
    assert "rank 1 died in call: it exited with code 3; the last line of its stderr: on st" in block
    assert "on stdout, no newline" in block.partition("Captured stdout call (ranks 0,1)")[2]


def test_what_all_ranks_print_is_told_once(run: Run) -> None:
    block = run.failure("test_mostly_alike[pp2]")
    title, _, rest = block.partition("Captured stdout call ")[2].partition("\n")
    assert title.startswith("(ranks 0,1) -")
    assert rest.splitlines()[:6] == [
        *(f"all | step {step}" for step in range(4)),
        "  0 | this is rank 0",
        "  1 | this is rank 1",
    ]


@pytest.mark.parametrize("test", ["test_with_capsys[pp2]", "test_with_capfd[pp2]"])
def test_the_capture_fixtures_work(run: Run, test: str) -> None:
    assert run.outcome(test) == "PASSED"


def test_each_phase_has_its_section(run: Run) -> None:
    block = run.failure("test_phases[pp2]")
    for phase in ("setup", "call"):
        (rest,) = block.split(f"Captured stdout {phase} (ranks 0,1)")[1:]
        assert rest.splitlines()[1] == f"in {phase}"


LIVE = """
import pytest
@pytest.mark.pprank
def test_talks(pprank):
    for i in range(100):
        print(f"line {i} of a rank")
    print("no newline at the end", end="")
"""


@pytest.mark.parametrize("flags", [["--pprank-live", "-rP"], ["-s"]])
def test_live_lines(runner: Runner, flags: list[str]) -> None:
    runner.write(test_it=LIVE)
    run = runner.run(*FLAGS, *flags)
    for rank in range(2):
        shown = [line for line in run.out.splitlines() if line.startswith(f"[pp{rank}] ")]
        assert shown == [
            *(f"[pp{rank}] line {i} of a rank" for i in range(100)),
            f"[pp{rank}] no newline at the end",
        ]
    in_report = "Captured stdout call (ranks 0,1)" in run.out
    assert in_report == ("-s" not in flags)


def test_log_dir(runner: Runner) -> None:
    runner.write(test_it=LIVE)
    run = runner.run(*FLAGS, "--pprank-log-dir=logs/new")
    assert run.ret == 0, run.out
    files = {p.name: p.read_text() for p in (runner.folder / "logs" / "new").iterdir()}
    assert sorted(files) == ["pp0.stdout.log", "pp1.stdout.log"]
    for text in files.values():
        assert "=== test_it.py::test_talks[pp2] ===\nline 0 of a rank\n" in text
        assert text.endswith("no newline at the end")


def test_a_log_dir_that_is_a_file(runner: Runner) -> None:
    runner.write(test_it=LIVE)
    (runner.folder / "taken").touch()
    run = runner.run(*FLAGS, "--pprank-log-dir=taken")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "--pprank-log-dir: " in run.out
    assert "is not a folder that can be written to" in run.out
