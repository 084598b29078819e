"""Two faults of one method: either may be released first, and nothing of them remains."""

from __future__ import annotations

import pytest

from pytest_pprank.sglang.driver.disagg_faults import Fault


class Engine:
    def send(self) -> str:
        return "sent"


@pytest.mark.parametrize("released", [(), (0,), (1,), (0, 1), (1, 0)])
def test_what_was_there_is_there_again(released: tuple[int, ...]) -> None:
    before = vars(Engine)["send"]
    faults = [Fault(), Fault()]
    for fault in faults:
        fault.replace(Engine, "send", lambda send: lambda engine: f"late {send(engine)}")
    assert Engine().send() == "late late sent"
    for index in released:
        faults[index].release()
    for fault in reversed(faults):  # as Disagg ends them
        fault.end()
    assert vars(Engine)["send"] is before
