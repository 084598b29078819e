"""How fast ranks start, and what a ranked test costs, against torchrun and plain pytest.

usage: python tests/benchmarks/launch.py [--quick]

Everything is measured in this one run, on this one machine, and told as a ratio. Needs the plugin
and SGLang in the running interpreter's environment. Nothing here asserts anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORT = """
from pytest_pprank.sglang.preload import prepare_environment
prepare_environment("cpu")
from pytest_pprank.sglang.torchvision_shim import ensure_torchvision
ensure_torchvision()
import sglang.srt.managers.scheduler
"""

# Runs inside the measured pytest: notes when groups start and how long each test takes.
PLUGIN = """
import json, os, time
import pytest_pprank.controller.group as group

BEGIN = float(os.environ["BENCH_BEGIN"])
notes = {"groups": [], "tests": [], "first_test": None}
start = group.WorkerGroup.start

def timed_start(self):
    before = time.time()
    start(self)
    notes["groups"].append(time.time() - before)

group.WorkerGroup.start = timed_start
run_test = group.WorkerGroup.run_test

def noted_run(self, *arguments):
    notes["first_test"] = notes["first_test"] or time.time() - BEGIN
    return run_test(self, *arguments)

group.WorkerGroup.run_test = noted_run

def pytest_runtest_logstart(nodeid):
    notes["now"] = time.perf_counter()

def pytest_runtest_logfinish(nodeid):
    notes["tests"].append((nodeid, time.perf_counter() - notes.pop("now")))

def pytest_unconfigure():
    with open(os.environ["BENCH_OUT"], "w") as file:
        json.dump(notes, file)
"""

FRESH = """
import pytest, sys

@pytest.mark.parametrize("again", range({count}))
@pytest.mark.pprank(fresh=True)
@pytest.mark.sglang()
def test_fresh(pprank, again):
    assert "sglang.srt.managers.scheduler" in sys.modules
"""

TRIVIAL = """
import pytest

@pytest.mark.parametrize("n", range(200))
def test_plain(n): pass

@pytest.mark.parametrize("n", range(200))
def test_ranked(pprank, n): pass
"""


def timed(command: list[str], **environment: str) -> float:
    """Run a command and return its seconds."""
    begin = time.time()
    subprocess.run(
        command,
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.time() - begin


def measured_pytest(folder: Path, source: str, *flags: str) -> dict[str, object]:
    """Run pytest on `source` with the noting plugin; returns its notes."""
    (folder / "bench_plugin.py").write_text(PLUGIN)
    (folder / "test_bench.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\n")
    out = folder / "notes.json"
    environment = {
        "PYTHONPATH": str(folder),
        "BENCH_OUT": str(out),
        "BENCH_BEGIN": str(time.time()),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench_plugin", "--pprank-device=cpu"]
    subprocess.run(
        [*command, *flags],
        cwd=folder,
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    notes: dict[str, object] = json.loads(out.read_text())
    return notes


def torchrun(folder: Path, ranks: int) -> float:
    """Seconds of torchrun on a script that imports the Scheduler."""
    script = folder / "imports.py"
    script.write_text(IMPORT)
    module = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return timed([sys.executable, *module, "--master-port", "0", str(script)])


def report(ranks: int, again: int, imported: float, peer: float, notes: dict[str, object]) -> None:
    """Print the lines of one group size."""
    _cold, *fresh = notes["groups"]  # type: ignore[misc]
    median = statistics.median(fresh)
    first = float(notes["first_test"])  # type: ignore[arg-type]
    print(f"{ranks} ranks")
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        imported = statistics.median(
            timed([sys.executable, "-c", IMPORT]) for _ in range(1 if quick else 3)
        )
        print(f"one import of SGLang's Scheduler                  {imported:7.2f} s")
        for ranks in (2,) if quick else (2, 8):
            again = 5 if quick else 10
            notes = measured_pytest(folder, FRESH.format(count=again + 1), f"--pp-size={ranks}")
            report(ranks, again, imported, torchrun(folder, ranks), notes)
            trivial = measured_pytest(folder, TRIVIAL, f"--pp-size={ranks}")
            seconds: list[tuple[str, float]] = trivial["tests"]  # type: ignore[assignment]
            plain = statistics.median(s for test, s in seconds if "test_plain" in test)
            ranked = statistics.median(s for test, s in seconds if "test_ranked" in test)
            print(f"  a trivial ranked test on a warm group           {ranked * 1000:7.2f} ms"
                  f"  plain: {plain * 1000:.2f} ms, adds {1000 * (ranked - plain):.2f} ms,"
                  " medians of 200")  # fmt: skip


if __name__ == "__main__":
    main()
