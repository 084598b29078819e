"""Runs tests that must fail, or that need another SGLang than the installed one.

They are in the folders of `inner`; the tests next to this file run each folder with one pytest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Run, Runner

collect_ignore = ["inner"]


@pytest.fixture(scope="module")
def inner(module_runner: Runner) -> Callable[..., Run]:
    """Run the tests of a folder of `inner` with one pytest, which must find failures.

    Every import of SGLang costs seconds, so avoid new runs: most faults can be planted into a test
    of an existing run.
    """
    module_runner.deadline = 300

    def run(folder: str, *args: str) -> Run:
        module_runner.copy(Path(__file__).parent / "inner" / folder)
        done = module_runner.run(*args)
        assert done.ret == 1, done.out
        return done

    return run
