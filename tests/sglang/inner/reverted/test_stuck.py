"""A stage whose loop does not return."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_pprank import Engine, Pprank


@pytest.mark.pprank(pp=2, timeout=8)
def test_stage_that_does_not_come_back(engine: Engine, pprank: Pprank) -> None:
    if pprank.rank == 1:
        engine.on_forward(lambda _: threading.Event().wait())
    engine.generate([20])
