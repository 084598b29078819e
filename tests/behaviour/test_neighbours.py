"""Ranked tests among other kinds of tests, and under plugins that need no support on a rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Run, Runner

MIXED = """
'''
>>> 1 + 1
2
'''
import asyncio, os, unittest
import pytest

def documented():
    '''
    >>> documented()
    3
    '''
    return 3

def test_plain():
    assert "RANK" not in os.environ

@pytest.mark.pprank(pp=2)
class TestClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.made_by = os.getpid()

    def test_of_a_rank(self):
        self.assertEqual(self.made_by, os.getpid())
        self.assertEqual(os.environ["WORLD_SIZE"], "2")

    def test_one_rank_fails(self):
        self.assertEqual(os.environ["RANK"], "0")

    @unittest.skip("why")
    def test_skipped(self):
        pass

    @unittest.expectedFailure
    def test_fails_as_expected(self):
        self.fail()

@pytest.mark.pprank(pp=2)
class TestAsyncClass(unittest.IsolatedAsyncioTestCase):
    async def test_awaits(self):
        await asyncio.sleep(0)
        assert os.environ["RANK"] in "01"

def test_ranked(pprank):
    pprank.barrier()
"""


@pytest.fixture(scope="module")
def mixed(module_runner: Runner) -> Run:
    module_runner.write(test_it=MIXED)
    return module_runner.run("--pp-size=2", "--pprank-device=cpu", "--doctest-modules")


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("test_it", "PASSED"),
        ("test_it.documented", "PASSED"),
        ("test_plain", "PASSED"),
        ("TestClass::test_of_a_rank", "PASSED"),
        ("TestClass::test_one_rank_fails", "FAILED"),
        ("TestClass::test_skipped", "SKIPPED"),
        ("TestClass::test_fails_as_expected", "XFAIL"),
        ("TestAsyncClass::test_awaits", "PASSED"),
        ("test_ranked[pp2]", "PASSED"),
    ],
)
def test_kinds_of_tests(mixed: Run, test: str, outcome: str) -> None:
    assert mixed.outcome(test) == outcome


def test_failure_in_a_test_case(mixed: Run) -> None:
    assert "failed on rank 1 of 2" in mixed.failure("TestClass.test_one_rank_fails")


def test_subtests(runner: Runner) -> None:
    runner.write(
        test_it="""
        import unittest, pytest
        @pytest.mark.pprank(pp=2)
        class TestClass(unittest.TestCase):
            def test_sub(self):
                for number in range(3):
                    with self.subTest(number=number):
                        self.assertNotEqual(number, 1)
        """
    )
    run = runner.run("--pprank-device=cpu")
    assert run.ret == 1
    assert "1 == 1" in run.out
    assert "failed on ranks 0,1 of 2" in run.out


RANDOM = """
import random
import pytest

def test_one(pprank):
    assert len(set(pprank.gather(random.random()))) == 1

def test_two(pprank):
    numpy = pytest.importorskip("numpy")
    assert len(set(pprank.gather(float(numpy.random.rand())))) == 1

@pytest.fixture
def drawn_in_setup():
    return random.random()

def test_three(pprank, drawn_in_setup):
    assert len(set(pprank.gather(drawn_in_setup))) == 1

def test_four(pprank):
    print("drew", random.random())
    assert pprank.rank < 0
"""


def test_randomly(runner: Runner) -> None:
    """All ranks have the same order and random numbers; so has a second run with the same seed."""
    pytest.importorskip("pytest_randomly")
    runner.write(test_it=RANDOM)
    options = ("-prandomly", "-prandomly", "--pp-size=2", "--pprank-device=cpu")
    runs = [runner.run(*options, f"--randomly-seed={seed}") for seed in (1, 1, 3)]
    for run in runs:
        assert run.counts()["failed"] == 1
    drawn = [[line for line in run.out.splitlines() if line.startswith("drew")] for run in runs]
    assert len(drawn[0]) == 1, "what both ranks have printed is shown once"
    assert drawn[0] == drawn[1] != drawn[2]
    orders = [_order(run) for run in runs]
    assert orders[0] == orders[1] != orders[2]


def _order(run: Run) -> list[str]:
    return [line.split()[0] for line in run.out.splitlines() if line.startswith("test_it.py::")]


ASYNC = """
import asyncio
import pytest, pytest_asyncio

@pytest_asyncio.fixture
async def value(pprank):
    await asyncio.sleep(0)
    yield pprank.rank

@pytest.mark.asyncio
async def test_marked(value, pprank):
    await asyncio.sleep(0)
    assert pprank.gather(value) == [0, 1]

@pytest.mark.asyncio
async def test_one_rank_fails(pprank):
    await asyncio.sleep(0)
    assert pprank.rank == 0

async def test_unmarked(pprank):
    await asyncio.sleep(0)
    assert pprank.gather(pprank.rank) == [0, 1]
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_asyncio(runner: Runner, mode: str) -> None:
    pytest.importorskip("pytest_asyncio")
    runner.write(test_it=ASYNC)
    run = runner.run("-pasyncio", f"--asyncio-mode={mode}", "--pp-size=2", "--pprank-device=cpu")
    assert run.outcome("test_marked[pp2]") == "PASSED"
    assert "failed on rank 1 of 2" in run.failure("test_one_rank_fails[pp2]")
    assert run.outcome("test_unmarked[pp2]") == ("PASSED" if mode == "auto" else "FAILED")
