"""A class of tests that share a session fixture: made once on each rank, the same on all.

pytest -p pytest_pprank --pp-size 2 examples/test_session_fixture.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_ranks_agree

if TYPE_CHECKING:
    from pytest_pprank import Pprank


@pytest.fixture(scope="session")
def run_name(pprank: Pprank) -> str:
    """Drawn on the first rank and sent to the others: each would draw another one."""
    name: str = pprank.broadcast(os.urandom(8).hex() if pprank.rank == 0 else None)
    return name


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every rank is a pytest session of its own: its temporary folders are, too."""
    return tmp_path_factory.mktemp("weights")


@pytest.mark.pprank
class TestSession:
    def test_the_ranks_have_one_name(self, run_name: str) -> None:
        assert_ranks_agree(run_name, what="the name of the run")

    def test_each_rank_has_a_folder(self, folder: Path, pprank: Pprank) -> None:
        assert len(set(pprank.gather(str(folder)))) == pprank.world_size
