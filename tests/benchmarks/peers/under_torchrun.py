"""A whole pytest on every rank: `torchrun --nproc-per-node N -m pytest`."""

from __future__ import annotations

import sys

from peers import FAULTS, HELPERS, Peer

NAME = "torchrun -m pytest"

_GROUP = """
@pytest.fixture(scope="session")
def process_group():
    dist.init_process_group("gloo"{timeout})
    yield dist.group.WORLD
    dist.destroy_process_group()
"""

_FAULTY = """
def test_1_warm(process_group):
    dist.barrier()

def test_2_faulty(process_group):
    dist.barrier()
    if dist.get_rank() == CULPRIT:
        note("fault")
        {fault}
    waits_here()

def test_3_innocent(process_group):
    note("began")
    innocent(dist.get_rank())
"""

_TRIVIAL = """
@pytest.mark.parametrize("n", range(200))
def test_plain(n):
    pass

@pytest.mark.parametrize("n", range(200))
def test_ranked(process_group, n):
    {body}
"""


def _command(ranks: int) -> list[str]:
    plugins = ("no:pytest_pprank", "no:cacheprovider", "bench_events")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    flags = (w for p in plugins for w in ("-p", p))
    return [*torchrun, f"--nproc-per-node={ranks}", "-m", "pytest", "-v", *flags]


def faulty(scenario: str, seconds: float | None) -> Peer:
    """Return the three tests on 2 ranks; `seconds`: the process group's timeout (None: default)."""
    timeout = "" if seconds is None else f", timeout=timedelta(seconds={seconds:g})"
    source = HELPERS + _GROUP.format(timeout=timeout) + _FAULTY.format(fault=FAULTS[scenario])
    return Peer(NAME, {"test_it.py": source}, _command(2))


def trivial(ranks: int, *, together: bool = False) -> Peer:
    """Return 200 trivial tests on every rank, and 200 plain ones.

    Nothing synchronizes the ranks between tests. With `together` each test ends with a barrier,
    which a suite under torchrun needs to keep its tests apart.
    """
    body = "dist.barrier()" if together else "pass"
    source = HELPERS + _GROUP.format(timeout="") + _TRIVIAL.format(body=body)
    return Peer(NAME, {"test_it.py": source}, _command(ranks))
