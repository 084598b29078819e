"""Files for SGLang's own tree, in the hands of SGLang's runner; unittest-style classes on ranks."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.__main__ import main
from pytest_pprank.bench.new_test import SEAMS

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

SITE = """
    from pytest_pprank.sglang.static.torchvision_shim import install_import_hook
    install_import_hook()  # as `setup` does for an environment that it has made
"""
DATASETS = """
    def load_dataset(*_): raise AssertionError("no test here loads one")
    Dataset = None
"""
PARSE = """
    import json, sys
    from sglang.test.ci.ci_register import collect_tests
    print(json.dumps([
        [it.backend.name, it.effective_suite, it.est_time, it.disabled, it.nightly]
        for it in collect_tests(sys.argv[1:])
    ]))
"""
SUITE = """
    import logging, sys
    from sglang.test.ci.ci_register import collect_tests
    from sglang.test.ci.ci_utils import run_unittest_files
    files = collect_tests(sys.argv[1:])
    sys.exit(abs(run_unittest_files(
        files, timeout_per_file=400, enable_retry=True, max_attempts=2, retry_wait_seconds=0,
        continue_on_error=True,
    )))
"""
RED = """\
def test_that_SGLang_would_retry(pprank):
    assert pprank.rank, "latency 3 not greater than 4: accuracy, score, throughput, timeout"


def test_late_rank(pprank, process_group):
    import torch
    import torch.distributed as dist

    if pprank.rank:
        dist.recv(torch.empty(1), 0)


"""


@pytest.fixture(scope="module")
def runner_of_sglang(module_runner: Runner) -> Runner:
    """A folder in which the programs of this file run, with SGLang importable as after `setup`."""
    module_runner.deadline = 600
    module_runner.write(sitecustomize=SITE, parse=PARSE, suite=SUITE)
    if find_spec("datasets") is None:  # which SGLang's base class of tests imports, and never uses
        module_runner.write(datasets=DATASETS)
    return module_runner


def program(runner: Runner, name: str, *arguments: str | Path) -> Run:
    """Run a program of the folder as SGLang's CI does: ``python3`` is that of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    where = f"{runner.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    words = " ".join(map(str, arguments))
    return runner.shell(f"PATH={path} PYTHONPATH={where} python3 {name} {words}")


@pytest.fixture(scope="module")
def written(runner_of_sglang: Runner) -> dict[str, Path]:
    folder = runner_of_sglang.folder
    for seam in SEAMS:
        assert main(["new-test", seam, "--seam", seam, "--output", str(folder)]) == 0
    return {seam: folder / f"test_{seam}.py" for seam in SEAMS}


def test_sglangs_parser_finds_each_file(runner_of_sglang: Runner, written: dict[str, Path]) -> None:
    found = program(runner_of_sglang, "parse.py", *written.values())
    rows = [f'["CPU", "base-b-test-cpu", {it.seconds}.0, null, false]' for it in SEAMS.values()]
    assert f"[{', '.join(rows)}]" in found.out


@pytest.mark.parametrize("seam", SEAMS)
def test_as_it_is_written_it_passes(
    runner_of_sglang: Runner, written: dict[str, Path], seam: str
) -> None:
    run = program(runner_of_sglang, str(written[seam]), "-f")
    assert run.ret == 0, run.out
    assert run.counts()["passed"] == 1
    assert "RuntimeError" not in run.out


def test_sglangs_runner_runs_a_red_ranked_test_once(
    runner_of_sglang: Runner, written: dict[str, Path]
) -> None:
    file = runner_of_sglang.folder / "test_red.py"
    head, main_block = written["pp"].read_text().split("def test_pp(engine):")
    file.write_text(head + RED + main_block[main_block.index("if __name__") :])
    run = program(runner_of_sglang, "suite.py", file)
    assert run.ret == 1, run.out
    assert "2 failed" in run.out
    assert "failed with non-retriable error: RuntimeError - not retrying" in run.out
    assert run.out.count("test session starts") == 1


CASES = """
    import unittest

    import pytest
    from sglang.test.test_utils import CustomTestCase

    class Shared(CustomTestCase):
        __test__ = False
        calls = 0

        @pytest.fixture(autouse=True)
        def parts(self, pprank, request):
            self.pprank = pprank
            yield
            print(f"after {request.node.name}")

        @classmethod
        def setUpClass(cls):
            cls.made = ["class"]

        @classmethod
        def tearDownClass(cls):
            print("class torn down")

        def setUp(self):
            super().setUp()
            self.made.append("method")

        def test_inherited(self):
            self.assertEqual(self.pprank.gather(self.made[0]), ["class"] * 2)

    @pytest.mark.pprank(pp=2)
    @pytest.mark.usefixtures("scheduler")
    class TestRanked(Shared):
        __test__ = True

        def test_scheduler_has_started(self):
            import torch.distributed

            self.assertTrue(torch.distributed.is_initialized())

        def test_passes_the_second_time(self):
            TestRanked.calls += 1
            if self.pprank.rank:
                self.assertEqual(TestRanked.calls, 2)

        def test_parts(self):
            for number in range(3):
                with self.subTest(number=number):
                    self.assertNotEqual(number, 1)

        @unittest.skip("by decorator")
        def test_skipped(self): pass

        def test_skips(self):
            self.skipTest("by call")

        @unittest.expectedFailure
        def test_expected(self):
            self.assertTrue(False)

        @unittest.expectedFailure
        def test_unexpected(self): pass

    @pytest.mark.pprank(pp=2)
    class TestBroken(CustomTestCase):
        @classmethod
        def setUpClass(cls):
            raise ValueError("no class today")

        def test_it(self): pass

    @pytest.mark.pprank(pp=2)
    class TestAsync(unittest.IsolatedAsyncioTestCase):
        async def test_awaits(self):
            import asyncio

            await asyncio.sleep(0)

        async def test_red(self):
            self.assertEqual(1, 2)

    class TestPlain(CustomTestCase):
        def test_plain(self): pass
"""


@pytest.fixture(scope="module")
def cases(runner_of_sglang: Runner) -> Run:
    runner = runner_of_sglang
    runner.write(test_cases=CASES)
    where = f"{runner.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    given = ["-p", "pytest_pprank", "--pprank-device=cpu", "--pprank-lease=off", "-rs"]
    env = {"PYTHONPATH": where, "SGLANG_IS_IN_CI": "true"}
    return runner.run(*given, "test_cases.py", env=env)


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("TestRanked::test_inherited", "PASSED"),
        ("TestRanked::test_scheduler_has_started", "PASSED"),
        ("TestRanked::test_passes_the_second_time", "FAILED"),
        ("TestRanked::test_skipped", "SKIPPED"),
        ("TestRanked::test_skips", "SKIPPED"),
        ("TestRanked::test_expected", "XFAIL"),
        ("TestRanked::test_unexpected", "FAILED"),
        ("TestBroken::test_it", "ERROR"),
        ("TestAsync::test_awaits", "PASSED"),
        ("TestAsync::test_red", "FAILED"),
        ("TestPlain::test_plain", "PASSED"),
    ],
)
def test_unittest_on_ranks(cases: Run, test: str, outcome: str) -> None:
    assert f"test_cases.py::{test} {outcome}" in cases.out, cases.out


def test_subtests_of_unittest(cases: Run) -> None:
    assert cases.out.count("AssertionError: 1 == 1") == 1  # one of three, told once for both ranks
    assert "test_cases.py::TestRanked::test_parts FAILED" in cases.out


def test_failure_is_that_of_the_test(cases: Run) -> None:
    """SGLang's class would raise an exception of its own, after a second try on that rank alone."""
    failure = cases.failure("TestRanked.test_passes_the_second_time")
    assert "AssertionError: 1 != 2" in failure
    assert "retry()" not in failure
    assert "failed on rank 1 of 2" in failure


def test_class_that_is_not_set_up(cases: Run) -> None:
    assert "ValueError: no class today" in cases.failure("TestBroken.test_it")
