"""Settings of the simulated device, from the environment or from a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytest_pprank.errors import UsageError

NAME = "sim"
"""The name of the device: ``torch.device("sim")``, ``torch.get_device_module("sim")``."""


@dataclass
class Settings:
    """How the device behaves.

    `deferred`: copies from and to pinned memory run as late as the rules allow, not at once.
    `poison`: until then, the destination of such a copy contains NaN or huge numbers. `tracking`:
    accesses are recorded and compared. `strict`: a finding also raises SimRaceError at the second
    access. `memory_limit`: bytes per device, 0 for none. `devices`: how many devices ``sim:0``,
    ``sim:1``, ... exist. `untracked`: reads are currently untracked
    (`pytest_pprank.devices.sim.untracked.untracked`).
    """

    deferred: bool = True
    poison: bool = True
    tracking: bool = True
    strict: bool = False
    memory_limit: int = 0
    devices: int = 8
    untracked: bool = False


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        raise UsageError(f"{name}={text!r} in the environment: a whole number, 0 or more")
    return int(text) if text else default


def from_environment() -> Settings:
    """Read PPRANK_SIM_DEFERRED, _POISON, _TRACKING, _STRICT (0 or 1), _MEMORY_LIMIT, _DEVICES."""
    return Settings(
        deferred=bool(_number("PPRANK_SIM_DEFERRED", 1)),
        poison=bool(_number("PPRANK_SIM_POISON", 1)),
        tracking=bool(_number("PPRANK_SIM_TRACKING", 1)),
        strict=bool(_number("PPRANK_SIM_STRICT", 0)),
        memory_limit=_number("PPRANK_SIM_MEMORY_LIMIT", 0),
        devices=_number("PPRANK_SIM_DEVICES", 8),
    )


settings = from_environment()


@contextmanager
def changed(**values: Any) -> Iterator[Settings]:
    """Change settings for a ``with`` block."""
    before = {name: getattr(settings, name) for name in values}
    for name, value in values.items():
        setattr(settings, name, value)
    try:
        yield settings
    finally:
        for name, value in before.items():
            setattr(settings, name, value)
