"""Failures whose pages are looked at by test_page.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Engine, Pprank


def test_generate(engine: Engine, pprank: Pprank) -> None:
    engine.generate([40, 30], 4)
    assert pprank.rank == 0, "red on one stage"


@pytest.mark.pprank(perturb="7:skew")
def test_disturbed(engine: Engine) -> None:
    engine.generate([40] * 4, 8)
    raise AssertionError("red")


@pytest.mark.pprank(prefill=1, decode=1)
def test_abort(disagg: Disagg) -> None:
    disagg.generate([40], 4)
    rid = disagg.submit(50, 8, rid="aborted")
    disagg.step(3)
    disagg.abort(rid)
    disagg.drain()
    raise AssertionError("red after an abort")


@pytest.mark.pprank(prefill=1, decode=1)
def test_slow_transfer(disagg: Disagg) -> None:
    fault = disagg.slow_transfer(iterations=4)
    disagg.generate([40], 4)
    fault.release()
    raise AssertionError("red")
