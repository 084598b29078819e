"""What a rank contributes to the meeting after a step of the event loops."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pytest_pprank.sglang.driver.control import ControlReport
from pytest_pprank.sglang.driver.outputs import Output
from pytest_pprank.sglang.driver.views import StageView
from pytest_pprank.sglang.events.types import Forward


@dataclass
class StepReport:
    """What a rank contributes to the meeting after a step; `outputs` on a role's first stage.

    `role`: the name of the rank's instance of its role.
    """

    rank: int
    role: str
    calls: tuple[str, ...]
    view: StageView
    forwards: list[Forward]
    moves: list[Forward]
    control: ControlReport
    changes: tuple[str, ...]
    clock: float = field(default_factory=time.monotonic)
    outputs: list[Output] = field(default_factory=list)
