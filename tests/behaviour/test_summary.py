"""The summary in Markdown, and the reports of a run that is cancelled."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

TESTS = """
    import os, pytest

    def test_plain(): pass

    def test_passes(pprank):
        print(f"said by {pprank.rank}")

    def test_fails(pprank):
        print(f"said by {pprank.rank}")
        assert pprank.rank == 0, "a | b <i> ```c``` [x](y)"

    def test_dies(pprank):
        if pprank.rank:
            os._exit(3)
        pprank.barrier()

    @pytest.fixture
    def broken(pprank): raise ValueError("no")
    def test_setup(broken): pass

    def test_skips(pprank): pytest.skip("no")

    @pytest.mark.xfail
    def test_expected(pprank): assert 0

    @pytest.mark.parametrize("it", ["a|b"])
    def test_plain_failure(it): assert 0
"""
GIVEN = ("-p", "pytest_pprank", "--pp-size=2", "--pprank-device=cpu", "--pprank-lease=off")
WRITES = ("--pprank-summary=summary.md", "--junitxml=junit.xml", "-ojunit_logging=all")


def rows(text: str) -> list[list[str]]:
    """Return the cells of the table's rows, as Markdown shows them."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    cells = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines]
    return [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in cells]


@pytest.fixture(scope="module", params=[(), ("-n2",)], ids=["alone", "n2"])
def folder(
    request: pytest.FixtureRequest, module_runner: Runner, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param:
        pytest.importorskip("xdist")
    runner = type(module_runner)(tmp_path_factory.mktemp("run"))
    runner.write(test_it=TESTS)
    (runner.folder / "summary.md").write_text("from the step before\n\n")
    run = runner.run(*GIVEN, *WRITES, *request.param)
    assert run.ret == 1, run.out
    return runner.folder


def test_counts_and_topologies(folder: Path) -> None:
    text = (folder / "summary.md").read_text()
    assert text.startswith("from the step before\n\n### ")
    title, _, first, *_ = text.splitlines()[2:]
    assert set(title.removeprefix("### ").split(", ")) == {
        "3 failed", "1 error", "2 passed", "1 skipped", "1 xfailed"
    }  # fmt: skip
    assert title.index("failed") < title.index("passed")
    assert first.startswith("- pp=2 device=cpu, torch ")


def test_row_of_each_failure(folder: Path) -> None:
    found = {row[1]: [row[0], *row[2:]] for row in rows((folder / "summary.md").read_text())}
    where = "pp=2 device=cpu"
    assert found == {
        "<code>test_it.py::test_fails[pp2]</code>": [
            "failed (rank 1)",
            where,
            "[rank 1] AssertionError: a | b &lt;i&gt; ```c``` [x](y)",
        ],
        "<code>test_it.py::test_dies[pp2]</code>": [
            "rank died (rank 1)",
            where,
            "rank 1 died in call: it exited with code 3",
        ],
        "<code>test_it.py::test_setup[pp2]</code>": [
            "setup failed (ranks 0,1)",
            where,
            "[ranks 0,1] ValueError: no",
        ],
        "<code>test_it.py::test_plain_failure[a|b]</code>": ["failed", "", "assert 0"],
    }


def test_text_of_each_failure_is_in_a_block_that_it_cannot_end(folder: Path) -> None:
    text = (folder / "summary.md").read_text()
    blocks = re.findall(
        r"^<details><summary>([^\n]*)</summary>\n\n(`+)text\n(.*?)\n\2\n\n</details>\n",
        text,
        re.MULTILINE | re.DOTALL,
    )
    assert {name for name, *_ in blocks} == {
        f"test_it.py::{name}" for name in ("test_fails[pp2]", "test_dies[pp2]", "test_setup[pp2]")
    } | {"test_it.py::test_plain_failure[a|b]"}
    ((fence, shown),) = [own for name, *own in blocks if "test_fails" in name]
    assert fence == "````"
    assert re.search(r"^again: .* 'test_it.py::test_fails\[pp2\]' --pp-size 2", shown, re.MULTILINE)


def test_junit_has_topology_ranks_and_output_of_each_rank(folder: Path) -> None:
    cases = {it.get("name"): it for it in ElementTree.parse(folder / "junit.xml").iter("testcase")}
    found = {
        name: {it.get("name"): it.get("value") for it in case.iter("property")}
        for name, case in cases.items()
    }
    ranked = {name for name, own in found.items() if own.get("pprank_topology")}
    assert ranked == {name for name in found if name and name.endswith("[pp2]")}
    assert found["test_fails[pp2]"]["pprank_failed_ranks"] == "1"
    assert found["test_dies[pp2]"]["pprank_failed_ranks"] == "1"
    assert found["test_setup[pp2]"]["pprank_failed_ranks"] == "0,1"
    assert "pprank_failed_ranks" not in found["test_passes[pp2]"]
    out = cases["test_passes[pp2]"].findtext("system-out", "")
    assert "[call, rank 0]\nsaid by 0\n[call, rank 1]\nsaid by 1\n" in out, out


def test_several_runs_write_to_one_file(runner: Runner) -> None:
    runner.write(test_it="def test_it(pprank): pass")
    (runner.folder / "pytest.ini").write_text("[pytest]\npprank_summary = s.md\n")
    for flags in (("--collect-only",), (), ()):
        assert runner.run(*GIVEN, *flags).ret == 0
    assert (
        re.findall("^###.*", (runner.folder / "s.md").read_text(), re.MULTILINE)
        == ["### 1 passed"] * 2
    )


def test_a_file_that_cannot_be_written_is_told_at_once(runner: Runner) -> None:
    run = runner.run(*GIVEN, "--pprank-summary=no/s.md")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    said = "ERROR: --pprank-summary: 'no/s.md' is not a file that can be written to (No such file"
    assert said in run.out


def test_file_that_cannot_be_collected(runner: Runner) -> None:
    runner.write(test_it="import nothing_of_this_name")
    runner.run(*GIVEN, "--pprank-summary=s.md")
    ((verdict, test, _, what),) = rows((runner.folder / "s.md").read_text())
    assert (verdict, test) == ("failed", "<code>test_it.py</code>")
    assert "ImportError" in what


STUCK = """
    import pytest

    def test_passes(pprank): pass

    @pytest.mark.pprank(timeout=1000)
    def test_stuck(process_group, pprank):
        import torch, torch.distributed as dist
        pprank.barrier()
        open(f"stuck{pprank.rank}", "w").close()
        dist.recv(torch.empty(1), src=1 - pprank.rank)

    def test_never(pprank): pass
"""


@pytest.fixture(params=[(), ("-n1",)], ids=["alone", "n1"])
def stuck(request: pytest.FixtureRequest, runner: Runner) -> Iterator[subprocess.Popen[str]]:
    """Start a run, in which a test waits for ever, and return it then."""
    if request.param:
        pytest.importorskip("xdist")
    runner.write(test_it=STUCK)
    with runner.popen("-v", *GIVEN, "--pprank-grace=600", *WRITES, *request.param) as process:
        try:
            done = [runner.folder / f"stuck{rank}" for rank in (0, 1)]
            runner.wait_for(lambda: all(it.exists() for it in done), "both ranks are stuck")
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM)],
    ids=["SIGTERM", "SIGINT-SIGTERM"],
)
def test_cancelled_job_leaves_its_reports_and_nothing_else(
    stuck: subprocess.Popen[str], runner: Runner, signals: tuple[signal.Signals, ...]
) -> None:
    """GitLab and Slurm send SIGTERM, GitHub Actions first SIGINT."""
    for number in signals:
        stuck.send_signal(number)
    out, _ = stuck.communicate(timeout=runner.deadline)
    assert stuck.returncode == pytest.ExitCode.INTERRUPTED, out
    cases = ElementTree.parse(runner.folder / "junit.xml").iter("testcase")
    assert "test_passes[pp2]" in [case.get("name") for case in cases]
    title = (runner.folder / "summary.md").read_text().partition("\n")[0]
    assert title.startswith("### 1 passed (interrupted: ")
    runner.wait_for(lambda: not runner.processes(), f"these are gone: {runner.processes()}")
