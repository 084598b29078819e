"""torch's own harness: processes that live as long as the test class (MultiProcContinuousTest)."""

from __future__ import annotations

import sys

from peers import FAULTS, HELPERS, Peer

NAME = "MultiProcContinuousTest"

_CLASS = """
from torch.testing._internal.common_distributed import MultiProcContinuousTest

def test_plain():
    pass

class TestIt(MultiProcContinuousTest):
    world_size = {ranks}
    {timeout}

    @classmethod
    def backend_str(cls):
        return "gloo"

    @classmethod
    def device_type(cls):
        return "cpu"
"""

_FAULTY = """
    def test_1_warm(self):
        dist.barrier()

    def test_2_faulty(self):
        dist.barrier()
        if self.rank == CULPRIT:
            note("fault")
            {fault}
        waits_here()

    def test_3_innocent(self):
        note("began")
        innocent(self.rank)
"""

_TRIVIAL = "".join(f"\n    def test_ranked_{n:03d}(self):\n        pass\n" for n in range(200))
_PLAIN = """
@pytest.mark.parametrize("n", range(200))
def test_plain(n):
    pass
"""


def _command() -> list[str]:
    plugins = ("no:pytest_pprank", "no:cacheprovider", "bench_events")
    return [sys.executable, "-m", "pytest", "-v", *(w for p in plugins for w in ("-p", p))]


def faulty(scenario: str, seconds: float | None) -> Peer:
    """Return the three tests on 2 ranks; `seconds`: the process group's timeout (None: default).

    The harness's main process checks for dead ranks every quarter of
    DISTRIBUTED_TESTS_DEFAULT_TIMEOUT (default 300 s, 2.5 times the process group's), but at most
    every 10 s.
    """
    timeout = "" if seconds is None else f"timeout = timedelta(seconds={seconds:g})"
    source = HELPERS + _CLASS.format(ranks=2, timeout=timeout)
    source += _FAULTY.format(fault=FAULTS[scenario])
    environment = (
        {} if seconds is None else {"DISTRIBUTED_TESTS_DEFAULT_TIMEOUT": f"{2.5 * seconds:.0f}"}
    )
    return Peer(NAME, {"test_it.py": source}, _command(), environment)


def trivial(ranks: int) -> Peer:
    """Return 200 trivial tests on `ranks` ranks, and 200 plain ones."""
    source = (
        HELPERS
        + _PLAIN
        + _CLASS.replace("def test_plain():\n    pass\n", "").format(ranks=ranks, timeout="")
    )
    return Peer(NAME, {"test_it.py": source + _TRIVIAL}, _command())
