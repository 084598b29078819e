"""This project."""

from __future__ import annotations

from common import ranked_pytest

from peers import FAULTS, HELPERS, Peer

NAME = "pytest-pprank"

_SOURCE = """
def test_1_warm(process_group, pprank):
    dist.barrier()

def test_2_faulty(process_group, pprank):
    dist.barrier()
    if pprank.rank == CULPRIT:
        note("fault")
        {fault}
    waits_here()

@pytest.fixture
def began(pprank):
    note("began")

def test_3_innocent(began, process_group, pprank):
    innocent(pprank.rank)
"""


def faulty(scenario: str, _seconds: float | None, grace: float = 5.0) -> Peer:
    """Return the three tests on 2 ranks; they do not depend on a process group's timeout."""
    source = HELPERS + _SOURCE.format(fault=FAULTS[scenario])
    return Peer(NAME, {"test_it.py": source}, ranked_pytest(2, f"--pprank-grace={grace:g}"))
