"""Measures how fast requests go through the event loops, next to transformers in the same run.

usage: python tests/benchmarks/engine.py [--ranks 2] [--no-suite]

Everything is measured in this one run, on this one machine. Needs the plugin and SGLang in the
environment of the running interpreter. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

from common import Observed, check, observe, ranked_pytest
from processes import adopt_orphans

TIMED = """
import time
import pytest
from bench_events import note

LENGTHS = (400, 400, 400)
TOKENS = 8

@pytest.mark.parametrize("again", range({starts}))
@pytest.mark.pprank(fresh=True)
def test_start(engine, again): pass

def test_generate(engine, pprank):
    from pytest_pprank.sglang.model.loaded import loaded
    for again in range({warm} + 2):
        begin = time.perf_counter()
        results = engine.generate(LENGTHS, TOKENS)
        seconds = time.perf_counter() - begin
        if again > 1 and pprank.rank == 0:
            note("generate", seconds=seconds)
    if pprank.rank == 0:
        import torch
        model, _ = loaded(results[0].model_path)
        for again in range({warm} + 2):
            begin = time.perf_counter()
            for result in results:
                model.generate(
                    torch.tensor([result.prompt]), max_new_tokens=TOKENS, do_sample=False,
                    eos_token_id=None, pad_token_id=0,
                )
            if again > 1:
                note("transformers", seconds=time.perf_counter() - begin)
"""


def measured(ranks: int) -> Observed:
    """Run the timed tests."""
    files = {"test_bench.py": TIMED.format(starts=4, warm=9)}
    return observe(ranked_pytest(ranks), files)


def starts(observed: Observed) -> list[float]:
    """Return the seconds until a Scheduler accepts requests, for each group but the first."""
    tests = [
        test["seconds"]
        for event in observed.of("durations")[:1]
        for test in event["tests"]
        if "test_start" in test["test"]
    ]
    return tests[1:]


def suite(ranks: int) -> tuple[float, str]:
    """Return the seconds of the whole stock suite, and its last line."""
    begin = time.time()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs"]
    command += ["pytest_pprank.suite", f"--pp-size={ranks}", "--pprank-device=cpu"]
    observed = observe(command, {}, patience=1800)
    last = [line.strip() for _, line in observed.lines if " in " in line][-1:]
    return time.time() - begin, last[0] if last else "it did not end"


def line(what: str, seconds: float, more: str = "") -> None:
    """Print one line of the table."""
    print(f"{what:<66} {seconds:7.2f} s  {more}".rstrip(), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--no-suite", action="store_true", help="leave the stock suite out")
    options = parser.parse_args()
    adopt_orphans()
    load = os.getloadavg()[0]
    print(f"{options.ranks} ranks on {len(os.sched_getaffinity(0))} cores, load before {load:.1f}")
    observed = measured(options.ranks)
    check(observed)
    generate, peer = (
        statistics.median(event["seconds"] for event in observed.of(what))
        for what in ("generate", "transformers")
    )
    ratio = f"{generate / peer:.1f}x transformers, one process"
    line("generate, 3 requests of 400 tokens, 8 out, warm, median of 9", generate, ratio)
    line("  the same by transformers.generate, one after another", peer)
    line("engine start: fresh group, Scheduler, tiny model; median of 3",
         statistics.median(starts(observed)))  # fmt: skip
    if not options.no_suite:
        seconds, last = suite(options.ranks)
        line("the whole stock suite", seconds, last)


if __name__ == "__main__":
    main()
