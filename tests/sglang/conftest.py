"""Tests that must fail, or that need another SGLang than the one that is installed: the folders of
`inner` hold them, one for each pytest that the tests beside them start.
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

    Every import of SGLang costs seconds, so a new one is worth some thought: most faults can be
    planted into a test of a run that is there.
    """
    module_runner.deadline = 300

    def run(folder: str, *args: str) -> Run:
        module_runner.copy(Path(__file__).parent / "inner" / folder)
        done = module_runner.run(*args)
        assert done.ret == 1, done.out
        return done

    return run
