"""The same tests, written for each harness in the way in which it is meant to be used.

Every test file has a warm-up, a faulty test and an innocent one. In the faulty test the culprit
raises or kills itself while its peer waits in a blocking recv from it. In the innocent test it
sends a value that the peer receives and checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FAULTS = {
    "raise": 'raise ValueError("the first cause")',
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
}
"""What the culprit does, by name of the scenario."""

CULPRIT = 1
WAITS = 0

HELPERS = f"""
import os, signal, sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from bench_events import note

CULPRIT, WAITS = {CULPRIT}, {WAITS}

def waits_here():
    dist.recv(torch.empty(1), src=CULPRIT)

def innocent(rank):
    value = torch.tensor([222.0 if rank == CULPRIT else 0.0])
    if rank == CULPRIT:
        dist.send(value, dst=WAITS)
    else:
        dist.recv(value, src=CULPRIT)
    assert value.item() == 222.0
"""


@dataclass(frozen=True)
class Peer:
    """A harness: `files` to write, the `command` that runs them, and its own environment."""

    name: str
    files: dict[str, str]
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
