"""Measures what the simulated device costs compared to the CPU: per operator, and for generation.

usage: python tests/benchmarks/sim.py [--operators]

Operators are timed in process time (the best of ten, inference mode, one thread). Generation is
the call of one test of the stock suite on two ranks, in real seconds: read the ratio, on a quiet
machine. --operators leaves out generation (and SGLang).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from pytest_pprank.devices.sim import module
from pytest_pprank.devices.sim.settings import changed

_ROUNDS, _CALLS = 10, 200
_TEST = "test_chunked_prompts_beside_others"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--operators", action="store_true", help="operators alone, without SGLang")
    options = parser.parse_args()
    operators()
    if not options.operators:
        seconds = {device: generation(device) for device in ("cpu", "sim")}
        ratio = seconds["sim"] / seconds["cpu"]
        print(f"{_TEST}: cpu {seconds['cpu']:.2f} s, sim {seconds['sim']:.2f} s, {ratio:.1f} x")


def operators() -> None:
    """Print microseconds per call of a few operators."""
    torch.set_num_threads(1)
    module.install()
    print(f"{'microseconds':14} {'cpu':>8} {'sim':>8} {'untracked':>10}")
    with torch.inference_mode():
        on_cpu, on_sim = _calls("cpu"), _calls("sim")
        for name in on_cpu:
            cpu, sim = _time(on_cpu[name]), _time(on_sim[name])
            with changed(tracking=False):
                untracked = _time(on_sim[name])
            print(f"{name:14} {cpu:8.1f} {sim:8.1f} {untracked:10.1f}")


def _calls(device: str) -> dict[str, Callable[[], object]]:
    x, weight = torch.ones(4, 4, device=device), torch.ones(8, 4, device=device)
    ids = torch.tensor([0, 1], device=device)
    pinned, value = torch.ones(4).pin_memory(), torch.ones(2, 4, device=device)
    return {
        "add": lambda: x + x,
        "add_": lambda: x.add_(0),
        "mm": lambda: x @ x,
        "view": lambda: x.view(2, 8),
        "slice": lambda: x[1],
        "embedding": lambda: torch.nn.functional.embedding(ids, weight),
        "index_put_": lambda: x.index_put_((ids,), value),
        "upload": lambda: pinned.to(device, non_blocking=True, copy=True),
        "item": lambda: x[0, 0].item(),
    }


def _time(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.process_time()
        for _ in range(_CALLS):
            call()
        best = min(best, (time.process_time() - start) / _CALLS * 1e6)
        if module.installed():
            torch.get_device_module("sim").synchronize()
    return best


def generation(device: str) -> float:
    """Return the seconds of the call of one test of the stock suite."""
    command = [sys.executable, "-m", "pytest", "--pyargs", "pytest_pprank.suite", "-k", _TEST]
    command += ["--pp-size", "2", "--pprank-device", device, "--durations=0", "-vv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^([\d.]+)s call .*" + _TEST, done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return float(found[1])


if __name__ == "__main__":
    main()
