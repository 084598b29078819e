"""Helpers of the benchmarks: run a command, and record what happened when."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench_events import OUT
from processes import end_descendants

Event = dict[str, Any]

TRIVIAL = """
import pytest

@pytest.mark.parametrize("n", range(200))
def test_plain(n): pass

@pytest.mark.parametrize("n", range(200))
def test_ranked(pprank, n): pass
"""


@dataclass(frozen=True)
class Observed:
    """A finished command: its events, its lines of output with their times, its duration.

    Times are seconds of the epoch. `begin`: when it was started. `ended`: whether it ended by
    itself.
    """

    events: list[Event]
    lines: list[tuple[float, str]]
    begin: float
    seconds: float
    ended: bool

    def of(self, what: str) -> list[Event]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if event["what"] == what]

    def medians(self) -> dict[str, float]:
        """Return the median duration in seconds by name of test, without parameters."""
        seconds: dict[str, list[float]] = {}
        for event in self.of("durations")[:1]:  # the first one, if several processes report
            for test in event["tests"]:
                name = test["test"].rpartition("::")[2].partition("[")[0]
                seconds.setdefault(name.rstrip("0123456789"), []).append(test["seconds"])
        return {name: statistics.median(each) for name, each in seconds.items()}

    @property
    def output(self) -> str:
        """Return what it printed."""
        return "".join(line for _, line in self.lines)


def timed(command: list[str], **environment: str) -> float:
    """Run a command and return its duration in seconds."""
    begin = time.time()
    subprocess.run(
        command,
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.time() - begin


def observe(
    command: Sequence[str],
    files: Mapping[str, str],
    environment: Mapping[str, str] = MappingProxyType({}),
    patience: float = 600.0,
) -> Observed:
    """Run a command in a folder with `files`; end it if it takes longer than `patience`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for file, text in {"pytest.ini": "[pytest]\n", **files}.items():
            (folder / file).write_text(text)
        out = folder / "events.jsonl"
        paths = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)]
        given = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            OUT: str(out),
            **environment,
        }
        begin = time.time()
        lines, ended = _run(command, folder, given, patience)
        seconds = time.time() - begin
        text = out.read_text() if out.exists() else ""
    return Observed([json.loads(e) for e in text.splitlines()], lines, begin, seconds, ended)


def _run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], patience: float
) -> tuple[list[tuple[float, str]], bool]:
    lines: list[tuple[float, str]] = []
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.time(), line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        process.wait(patience)
        ended = True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        ended = False
    end_descendants()
    reader.join(10)
    return lines, ended


def ranked_pytest(stages: int, *flags: str) -> list[str]:
    """Return the command line of a ranked run whose events are recorded.

    `flags`: more options, such as ``--tp-size=2``.
    """
    plugins = ("-p", "bench_events", "-p", "no:cacheprovider")
    sizes = (f"--pp-size={stages}", "--pprank-device=cpu")
    return [sys.executable, "-m", "pytest", "-v", *plugins, *sizes, *flags]


def trivial_cost(stages: int, *flags: str) -> tuple[float, float]:
    """Return the median seconds of a plain and of a warm ranked test (200 each)."""
    observed = observe(ranked_pytest(stages, *flags), {"test_bench.py": TRIVIAL})
    check(observed)
    medians = observed.medians()
    return medians["test_plain"], medians["test_ranked"]


def check(observed: Observed) -> None:
    """If a run has not recorded what it should, show its output and exit."""
    if not observed.of("durations"):
        sys.exit(f"a measured run went wrong:\n{observed.output[-4000:]}")
