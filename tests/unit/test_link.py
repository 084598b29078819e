"""A rank's end of the control plane: what its service thread does."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pytest_pprank.host import link
from pytest_pprank.protocol.channel import Channel, Listener, connect
from pytest_pprank.protocol.messages import Hello, LedgerUpdated, UpdateLedger

KEY = b"k" * 32
DEADLINE = 30


@pytest.fixture
def channels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Channel]]:
    """Channel and watch of a rank, then the controller's ends of them."""
    ended = threading.Event()

    def end_thread() -> None:  # in place of the end of this process
        ended.set()

    monkeypatch.setattr(link, "_kill_own_process_group", end_thread)
    monkeypatch.setattr(link, "_DEVICE_SECONDS", 0.01)
    with ExitStack() as stack:
        listener = Listener(KEY)
        stack.callback(listener.close)
        ours, theirs = [], []
        for _ in range(2):
            ours.append(connect(listener.address, KEY, Hello(0, os.getpid())))
            arrived = listener.arrived(DEADLINE)
            assert arrived
            theirs.append(arrived[1])
        yield [*ours, *theirs]
        for channel in theirs:
            channel.close()
        assert ended.wait(DEADLINE)
        for channel in ours:
            channel.close()


def test_the_device_is_looked_at_again_and_again_beside_requests(channels: list[Channel]) -> None:
    looks, updates = threading.Semaphore(0), threading.Semaphore(0)
    link.Link(channels[0], channels[1], updates.release, looks.release)
    for _ in range(3):
        assert looks.acquire(timeout=DEADLINE)
    channels[3].send(UpdateLedger())
    assert isinstance(channels[2].receive(), LedgerUpdated)
    assert updates.acquire(timeout=DEADLINE)
    while looks.acquire(blocking=False):
        pass
    assert looks.acquire(timeout=DEADLINE)  # and after a request


def test_without_a_device_that_works_by_itself_nothing_is_looked_at(
    channels: list[Channel],
) -> None:
    updates = threading.Semaphore(0)
    link.Link(channels[0], channels[1], updates.release)
    channels[3].send(UpdateLedger())
    assert isinstance(channels[2].receive(), LedgerUpdated)
