"""A prefill room whose status "ready" is delayed, if the stages agree through a store."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pprank.sglang.driver import disagg_store_faults


class Poll(IntEnum):
    Failed = 0
    Bootstrapping = 1
    WaitingForInput = 2
    Transferring = 3


class Fault:
    """Stands in for a Fault, and records its actions."""

    def __init__(self) -> None:
        self.each_iteration: list[Callable[[], None]] = []

    def on_release(self, call: Callable[[], None]) -> None:
        self.over = call

    def replace(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        setattr(owner, name, wrap(getattr(owner, name)))


@pytest.mark.parametrize(
    ("later", "after"),
    [
        # a sender is created when decode has announced the room: SGLang takes the higher status
        (Poll.Bootstrapping, [Poll.Bootstrapping, Poll.WaitingForInput]),
        (Poll.Failed, [Poll.Failed]),
        (Poll.Transferring, [Poll.Transferring]),
    ],
)
def test_only_what_counts_more_takes_the_place_of_news_that_is_kept(
    monkeypatch: pytest.MonkeyPatch, later: Poll, after: list[Poll]
) -> None:
    table: list[Poll] = []
    manager = SimpleNamespace(update_status=lambda _, status: table.append(status))
    monkeypatch.setattr(disagg_store_faults, "kv_manager", lambda _: manager)
    monkeypatch.setattr(disagg_store_faults, "poll_class", lambda: Poll)
    fault, due = Fault(), [Poll.Bootstrapping]
    disagg_store_faults.ready_late(None, fault, lambda *_: due[-1])  # type: ignore[arg-type]
    manager.update_status(7, Poll.WaitingForInput)
    assert table == [Poll.Bootstrapping]  # an abort that comes next must find the room
    table.clear()
    manager.update_status(7, later)
    due.append(Poll.WaitingForInput)
    for look in fault.each_iteration:
        look()
    assert table == after
