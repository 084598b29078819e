"""Measures what recording for the page (--pprank-report) costs during the call of a test.

usage: python tests/benchmarks/report.py [--ranks 2] [--rounds 15] [--device cpu]

Each rank does the same with and without recording, in turns and in one process: on a machine with
other load, two runs differ by more than recording costs. Shown are the medians of the processor
time of a rank, and of what recording adds in each round. Needs the plugin and SGLang in the
environment of the running interpreter. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics

from common import Event, check, observe, ranked_pytest
from processes import adopt_orphans

SWITCH = """
import time
from bench_events import note
from pytest_pprank.host import lifecycles
from pytest_pprank.oplog.record import ledger
from pytest_pprank.trace.record import trace

ROUNDS = {rounds}
RECORDER = trace._recorder

def switch(on):
    # what is recorded before each call of a test, and ended after it
    trace._recorder = RECORDER if on else None
    ledger._recorder.tee(RECORDER.operation if on else None)
    for recording, events in lifecycles._current._traced:
        recording._broken = not on
        if on:
            events.begin()
        else:
            recording.close()

def measure(what, work):
    for on in (True, False, True):
        switch(on)
        work()
    for number in range(ROUNDS):
        for on in (False, True):
            switch(on)
            begin = time.process_time()
            work()
            note(what, round=number, on=on, cpu=time.process_time() - begin)
    switch(True)
"""
TESTS = """
import torch
import torch.distributed as dist
import pytest

@pytest.mark.pprank(timeout=900)
def test_generate(engine):
    measure("generate", lambda: engine.generate((400, 400, 400), 8))

@pytest.mark.pprank(timeout=900)
def test_messages(process_group, pprank):
    tensor = torch.ones(16)

    def work():
        for _ in range(300):
            if pprank.rank % 2 == 0:
                dist.send(tensor, dst=pprank.rank + 1)
            else:
                dist.recv(tensor, src=pprank.rank - 1)
        dist.all_reduce(tensor)

    measure("messages", work)
"""
ABOUT = {
    "generate": "generate, 3 requests of 400 tokens, 8 out",
    "messages": "300 messages and an all_reduce, without SGLang",
}


def told(what: str, events: list[Event]) -> str:
    """Return the line of one kind of work."""
    cpu = {(event["rank"], event["round"], event["on"]): event["cpu"] for event in events}
    pairs = [
        (seconds, cpu[rank, number, True]) for (rank, number, on), seconds in cpu.items() if not on
    ]
    without = statistics.median(seconds for seconds, _ in pairs)
    more = statistics.median(with_page - seconds for seconds, with_page in pairs)
    least, least_more = (min(pair[place] for pair in pairs) for place in (0, 1))
    return (
        f"{ABOUT[what]:<48} {without * 1e3:7.1f} ms, recording adds {more * 1e3:6.1f} ms "
        f"({100 * more / without:+.1f} %); least {least * 1e3:.1f} and {least_more * 1e3:.1f} ms "
        f"({100 * (least_more / least - 1):+.1f} %)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    adopt_orphans()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{options.ranks} ranks on {options.device}, {cores} cores, load before {load:.1f}")
    flags = ("--pprank-lease=off", f"--pprank-device={options.device}", "--pprank-report=page")
    source = SWITCH.format(rounds=options.rounds) + TESTS
    observed = observe(ranked_pytest(options.ranks, *flags), {"test_bench.py": source})
    check(observed)
    for what in ABOUT:
        print(told(what, observed.of(what)), flush=True)


if __name__ == "__main__":
    main()
