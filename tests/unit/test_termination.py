"""SIGTERM beside Ctrl-C: two interrupts do not meet, and none is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from pytest_pprank.controller import termination
from pytest_pprank.controller.termination import Termination

DEADLINE_S = 60


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Termination]:
    monkeypatch.setattr(termination, "_SETTLE_S", 0.3)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    made = Termination()
    try:
        yield made
    finally:
        made.pytest_unconfigure()
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("own")
def test_sigterm_alone_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("own")
def test_sigterm_right_after_ctrl_c_comes_later() -> None:
    """Nobody has ended the run because of Ctrl-C: so it must end by SIGTERM."""
    interrupt()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        time.sleep(DEADLINE_S)  # until the signal comes


def test_a_run_that_ends_by_ctrl_c_is_left_alone(own: Termination) -> None:
    interrupt()
    signal.raise_signal(signal.SIGTERM)
    assert own._later is not None
    own.pytest_keyboard_interrupt()
    own._later.join(DEADLINE_S)
    signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
