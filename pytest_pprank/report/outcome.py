"""What one test did on the ranks of a group: reports where there are any, troubles where not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_pprank.report.findings import Findings
from pytest_pprank.report.verdicts import Trouble

Printed = dict[str, dict[str, str]]
"""What a rank has printed: phase (``setup``, ``call``, ``teardown``) to stream to text."""


@dataclass
class TestOutcome:
    """All that came back of one test.

    `reports` maps a rank to its phases in order, as pytest serialised them; `printed` to what it
    printed, also in a phase that it did not get through. `spoiled` says why the group must not run
    another test, and is told to the user; `unsettled` replaces it silently. `findings`: those of
    the sanitizers. `perturbed`: by rank, what the perturbations did, in words. `left`: in words,
    what the test has left changed in its processes, and was put back.
    """

    __test__ = False
    reports: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    printed: dict[int, Printed] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    spoiled: str = ""
    unsettled: bool = False
    seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)
    perturbed: dict[int, str] = field(default_factory=dict)
    left: str = ""
