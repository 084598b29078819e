"""A stage that does not come back."""

import threading

import pytest


@pytest.mark.pprank(pp=2, timeout=8)
def test_stage_that_does_not_come_back(engine, pprank):
    if pprank.rank == 1:
        engine.on_forward(lambda _: threading.Event().wait())
    engine.generate([20])
