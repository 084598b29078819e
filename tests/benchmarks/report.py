"""Measures what recording for the page (--pprank-report) costs during the call of a test.

usage: python tests/benchmarks/report.py [--ranks 2] [--pairs 3] [--device cpu]

Runs with and without the page take turns, on this one machine. Processor time of the ranks is what
recording adds, and depends less on other load than the clock does. Needs the plugin and SGLang in
the environment of the running interpreter. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from common import check, observe, ranked_pytest
from processes import adopt_orphans

GENERATE = """
import time
from bench_events import note

def test_generate(engine, pprank):
    for again in range({warm} + 2):
        wall, cpu = time.perf_counter(), time.process_time()
        engine.generate((400, 400, 400), 8)
        if again > 1:
            note("generate", wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
"""
MESSAGES = """
import time
import torch
import torch.distributed as dist
from bench_events import note

def test_messages(process_group, pprank):
    tensor = torch.ones(16)
    for again in range({warm} + 2):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(300):
            if pprank.rank % 2 == 0:
                dist.send(tensor, dst=pprank.rank + 1)
            else:
                dist.recv(tensor, src=pprank.rank - 1)
        dist.all_reduce(tensor)
        if again > 1:
            note("generate", wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
"""


def measured(source: str, ranks: int, device: str, *, page: bool) -> dict[str, list[float]]:
    """Return wall and processor seconds of each repetition on each rank."""
    flags = ["--pprank-lease=off", f"--pprank-device={device}"]
    flags += ["--pprank-report=page", "--pprank-report-tests=all"] if page else []
    observed = observe(ranked_pytest(ranks, *flags), {"test_bench.py": source.format(warm=9)})
    check(observed)
    events = observed.of("generate")
    return {what: [event[what] for event in events] for what in ("wall", "cpu")}


def compare(what: str, source: str, options: argparse.Namespace) -> None:
    """Print the least time with and without the page, and the medians: other load adds to both."""
    found: dict[bool, dict[str, list[float]]] = {page: {"wall": [], "cpu": []} for page in (0, 1)}
    for _ in range(options.pairs):
        for page in (False, True):
            for kind, times in measured(source, options.ranks, options.device, page=page).items():
                found[page][kind] += times
    for kind in ("wall", "cpu"):
        for name, choose in (("least", min), ("median", statistics.median)):
            without, with_page = (choose(found[page][kind]) for page in (False, True))
            print(
                f"{what}, {kind:<4} {name:<6} {without * 1e3:8.1f} ms, with the page "
                f"{with_page * 1e3:8.1f} ms: {100 * (with_page / without - 1):+.1f} %",
                flush=True,
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    adopt_orphans()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{options.ranks} ranks on {options.device}, {cores} cores, load before {load:.1f}")
    begin = time.time()
    compare("generate, 3 requests of 400 tokens, 8 out", GENERATE, options)
    compare("300 messages and an all_reduce, no SGLang", MESSAGES, options)
    print(f"measured in {time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
