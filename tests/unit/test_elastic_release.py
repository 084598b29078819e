"""A launcher whose ranks were killed while they waited for elastic to have read their results."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest


def test_who_waits_for_a_killed_waiter_goes_on() -> None:
    elastic = pytest.importorskip("pytest_pprank.launch.elastic")
    context = multiprocessing.get_context("spawn")
    event = context.Event()
    rank = context.Process(target=event.wait)
    rank.start()
    sleeping = event._cond._sleeping_count  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while not sleeping.get_value() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sleeping.get_value() == 1
    assert rank.pid is not None
    os.kill(rank.pid, signal.SIGKILL)
    rank.join()
    setter = threading.Thread(target=event.set, daemon=True)
    setter.start()
    setter.join(0.5)
    assert setter.is_alive(), "multiprocessing has changed: nobody need be released"
    group = object.__new__(elastic.ElasticGroup)
    group._released = False
    worker_group = SimpleNamespace(workers=[SimpleNamespace(id=rank.pid)])
    group._agent = SimpleNamespace(
        _pcontext=SimpleNamespace(_worker_finished_event=event),
        get_worker_group=lambda _: worker_group,
    )
    group.release()
    setter.join(30)
    assert not setter.is_alive()
