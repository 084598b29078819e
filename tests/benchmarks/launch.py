"""Measures how fast ranks start, and what a ranked test costs, against torchrun and plain pytest.

usage: python tests/benchmarks/launch.py [--quick]

Everything is measured in this one run, on this one machine, and printed as a ratio. Needs the
plugin and SGLang in the environment of the running interpreter. Asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from common import Observed, check, observe, ranked_pytest, timed, trivial_cost
from processes import adopt_orphans

GROUPS = ((2, 1), (2, 2), (8, 1), (4, 2))
"""Pipeline stages, and ranks of each stage."""

IMPORT = """
from pytest_pprank.sglang.platform.preload import prepare_environment
prepare_environment("cpu")
from pytest_pprank.sglang.static.torchvision_shim import ensure_torchvision
ensure_torchvision()
import sglang.srt.managers.scheduler
"""

FRESH = """
import pytest, sys

@pytest.mark.parametrize("again", range({count}))
@pytest.mark.pprank(fresh=True)
@pytest.mark.sglang()
def test_fresh(pprank, again):
    assert "sglang.srt.managers.scheduler" in sys.modules
"""


def torchrun(folder: Path, ranks: int) -> float:
    """Return the seconds of torchrun on a script that imports the Scheduler."""
    script = folder / "imports.py"
    script.write_text(IMPORT)
    module = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return timed([sys.executable, *module, "--master-port", "0", str(script)])


def report(title: str, again: int, imported: float, peer: float, fresh: Observed) -> None:
    """Print the lines of one group size."""
    cold, *warm = fresh.of("group started")
    median = statistics.median(start["seconds"] for start in warm)
    first = cold["time"] - fresh.begin
    print(title)
    print(f"  torchrun, a script that imports the Scheduler   {peer:7.2f} s")
    print(f"  fresh group, SGLang imported, median of {again:<3}     {median:7.2f} s"
          f"   {peer / median:5.1f}x faster than torchrun")  # fmt: skip
    print(f"  cold start to the first test                    {first:7.2f} s"
          f"   {first / imported:5.2f}x one import of SGLang")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 ranks only, fewer repetitions")
    quick = parser.parse_args().quick
    adopt_orphans()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        imported = statistics.median(
            timed([sys.executable, "-c", IMPORT]) for _ in range(1 if quick else 3)
        )
        print(f"one import of SGLang's Scheduler                  {imported:7.2f} s")
        for stages, tp in GROUPS[:1] if quick else GROUPS:
            again, ranks = 5 if quick else 10, stages * tp
            files = {"test_bench.py": FRESH.format(count=again + 1)}
            fresh = observe(ranked_pytest(stages, f"--tp-size={tp}"), files)
            check(fresh)
            title = f"{ranks} ranks (pp={stages}, tp={tp})"
            report(title, again, imported, torchrun(folder, ranks), fresh)
            plain, ranked = trivial_cost(stages, f"--tp-size={tp}")
            print(f"  a trivial ranked test on a warm group           {ranked * 1000:7.2f} ms"
                  f"  plain: {plain * 1000:.2f} ms, adds {1000 * (ranked - plain):.2f} ms,"
                  " medians of 200")  # fmt: skip


if __name__ == "__main__":
    main()
