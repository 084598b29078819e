"""Ranks of prefill and decode that die, and sizes that SGLang refuses."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank

pytestmark = pytest.mark.pprank(prefill=2, decode=1)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_killed(disagg: Disagg, pprank: Pprank, role: str) -> None:
    disagg.slow_transfer(stages=[0, 1])
    rid = disagg.submit(30)
    disagg.run_until_state(rid, "transferring")
    if (pprank.role, pprank.stage) == (role, 0):
        os.kill(os.getpid(), signal.SIGKILL)
    disagg.drain()


def test_next(disagg: Disagg) -> None:
    assert len(disagg.generate([9])[0].token_ids) == 8
