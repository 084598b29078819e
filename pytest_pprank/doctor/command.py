"""The ``doctor`` command: prints the result of each check, and what can run.

Exit code 0: ranked tests can run, at least without SGLang on device cpu. 1: they cannot.
130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from pytest_pprank._version import __version__
from pytest_pprank.doctor import verdict
from pytest_pprank.doctor.examine import examine
from pytest_pprank.doctor.result import Check, Result
from pytest_pprank.doctor.table import CHECKS

_INTERRUPTED = 130


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "doctor",
        help="say what can run on this machine, what cannot, and which command mends it",
        description="Look at Python, pytest, torch, SGLang, the devices, Mooncake, leases, "
        "/dev/shm, limits, loopback, the clock and the temporary folder, and import torch and "
        "SGLang as a run does (up to 40 s). One line for each, with the command that mends what is "
        "missing. Nothing is changed. Exit code 1 when ranked tests cannot run at all.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run ``doctor``; return the exit code."""
    try:
        results = _collect() if args.json else _print_lines()
    except KeyboardInterrupt:
        print("doctor: interrupted", file=sys.stderr)
        return _INTERRUPTED
    runs = verdict.usable(results.values())
    words = verdict.in_words(runs)
    print(json.dumps(_object(results, words), indent=1) if args.json else words)
    return 0 if verdict.anything(runs) else 1


def _collect() -> dict[str, Result]:
    return {check.name: result for check, result in examine(CHECKS)}


def _print_lines() -> dict[str, Result]:
    results = {}
    for check, result in examine(CHECKS, before=_print_name):
        print("\n".join(_lines(result)), flush=True)
        results[check.name] = result
    return results


def _print_name(check: Check) -> None:
    print(f"{check.name:<10}", end="", flush=True)  # so that it is seen what is waited for


def _lines(result: Result) -> Iterator[str]:
    yield f"{result.state.value:<8} {result.text}"
    if result.cure:
        yield f"{'':<10}{'mend:':<8} {result.cure}"


def _object(results: dict[str, Result], words: str) -> dict[str, object]:
    checks = [
        {"name": name, "state": it.state.value, "text": it.text, "cure": it.cure,
         "stops": [use.value for use in it.stops]}
        for name, it in results.items()
    ]  # fmt: skip
    runs = {use.value: can for use, can in verdict.usable(results.values()).items()}
    return {"pytest_pprank": __version__, "checks": checks, "can_run": runs, "summary": words}
