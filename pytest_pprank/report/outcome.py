"""The results of one test on the ranks of a group: reports, and troubles that no rank reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_pprank.oplog.read.waits import Waits
from pytest_pprank.report.findings import Findings
from pytest_pprank.report.verdicts import Trouble

Printed = dict[str, dict[str, str]]
"""What a rank has printed: phase (``setup``, ``call``, ``teardown``) to stream to text."""


@dataclass
class TestOutcome:
    """Everything that is known of one test.

    `reports`: by rank, its phases in order, as pytest serialised them. `printed`: by rank, what it
    printed, also in a phase it did not finish. `spoiled`: why the group must not run another test,
    for the user; `unsettled` replaces the group silently. `findings`: those of the sanitizers.
    `perturbed`: by rank, what the perturbations did, in words. `left`: in words, the process
    settings that the test had changed and that were restored. `waits`: who waited for whom when a
    trouble ended the test. `places`: by rank, where it was then, or what had become of it. `leave`:
    whether the user has left the debugger in a way that stops the run. `killed`: ranks that the
    test itself has had killed, of which there are no reports.
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
    waits: Waits = field(default_factory=Waits)
    places: dict[int, str] = field(default_factory=dict)
    leave: bool = False
    killed: frozenset[int] = frozenset()
