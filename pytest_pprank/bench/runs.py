"""One measured run: pytest on the stock suite, with or without a revert, in a child process."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_pprank.bench import recorder
from pytest_pprank.bench.processes import Child
from pytest_pprank.bench.selection import selection_of
from pytest_pprank.launch import keep_owner
from pytest_pprank.sglang.reverts import reached

_POLL_S = 0.25
WHOLE_SUITE = 4
"""Deadlines per run of the whole suite; a run with a revert ends at its first failure."""


@dataclass(frozen=True)
class Options:
    """How to run the suite.

    `any_device`: whether the device is only a default. `keep`: runs fork from one process that has
    torch and SGLang imported, see `launch.keep_owner`. `arguments`: passed to pytest after all
    other arguments; tests among them (see `selection`) replace the suite.
    """

    sizes: str = "2"
    device: str = ""
    all_tests: bool = False
    deadline: float = 300.0
    test_timeout: float = 30.0
    arguments: tuple[str, ...] = ()
    any_device: bool = False
    keep: bool = False

    def command(self, revert: str | None, *, to_end: bool = False) -> list[str]:
        """Return the command line of one run.

        A run with a revert ends at its first failure, unless `to_end` or `all_tests`.
        """
        chosen = selection_of(self.arguments)
        command = [sys.executable, "-m", "pytest", "-p", recorder.__name__]
        command += ["-p", "no:cacheprovider", "--pyargs", *chosen.tests, "--pp-size", self.sizes]
        command += ["--pprank-timeout", f"{self.test_timeout:g}"]
        command += ["--rootdir", str(chosen.rootdir)]
        if self.device:
            command += ["--pprank-device", self.device]
        if self.keep:
            command += ["--pprank-keep"]
        if revert is not None:
            command += ["--pprank-revert", revert]
            command += [] if self.all_tests or to_end else ["-x"]
        return [*command, *chosen.others]


@dataclass(frozen=True)
class Red:
    """A test that failed, what detected it (assertion, exception or verdict), and its texts."""

    test: str
    phase: str
    verdict: str
    seen_by: str
    message: str
    text: str = ""


@dataclass(frozen=True)
class Run:
    """The records of a run. `status`: pytest's exit code, None if the deadline passed.

    `topologies`, `docs` (docstrings) and `seconds_of` (of finished tests) are by test id. `output`
    is kept if pytest has not run the tests to their end.
    """

    status: int | None
    seconds: float
    reds: tuple[Red, ...] = ()
    passed: tuple[str, ...] = ()
    topologies: Mapping[str, str] = field(default_factory=dict)
    docs: Mapping[str, str] = field(default_factory=dict)
    seconds_of: Mapping[str, float] = field(default_factory=dict)
    reached: tuple[reached.Reached, ...] = ()
    errors: tuple[str, ...] = ()
    output: str = ""


class Runner:
    """Starts runs, and can end all of them.

    `beat(name, done, of, seconds)` is called every `beat_every` seconds with a run's progress.
    """

    def __init__(
        self,
        options: Options,
        folder: Path,
        beat: Callable[[str, int, int, float], None] = lambda *_: None,
        beat_every: float = 20.0,
    ) -> None:
        self._options = options
        self._folder = folder
        self._beat = beat
        self._beat_every = beat_every
        self._stop = threading.Event()

    def stop(self) -> None:
        """End all runs now; their `run` then returns the results so far."""
        self._stop.set()

    def is_stopped(self) -> bool:
        """Return whether `stop` was called."""
        return self._stop.is_set()

    def run(
        self,
        name: str,
        revert: str | None = None,
        *,
        first: Sequence[str] = (),
        skip: Iterable[str] = (),
        to_end: bool = False,
        device: str = "",
    ) -> Run:
        """Run the suite, first the tests in `first`, in that order, without those in `skip`.

        `to_end`: continue after the first failure. `device`: replaces that of the options.
        """
        options = replace(self._options, device=device or self._options.device)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self._folder))
        order = json.dumps({"first": list(first), "skip": sorted(skip)})
        (folder / recorder.ORDER).write_text(order, "utf-8")
        started = time.monotonic()
        child = Child(
            options.command(revert, to_end=to_end),
            folder=folder,
            environment={**os.environ, **self._own(), reached.VARIABLE: _file_of_reached(folder)},
            mark=(recorder.FOLDER, str(folder)),
        )
        try:
            deadline = self._options.deadline * (WHOLE_SUITE if to_end else 1)
            status = self._watch(name, child, folder, started + deadline)
        finally:
            child.end()
        return read_run(folder, status, time.monotonic() - started, child.output())

    def _own(self) -> dict[str, str]:
        return {keep_owner.VARIABLE: keep_owner.this_process()} if self._options.keep else {}

    def _watch(self, name: str, child: Child, folder: Path, deadline: float) -> int | None:
        started = time.monotonic()
        next_beat = started + self._beat_every
        while (status := child.wait(_POLL_S)) is None:
            now = time.monotonic()
            if self.is_stopped() or now > deadline:
                return None
            if now >= next_beat:
                next_beat = now + self._beat_every
                run = read_run(folder, None, 0.0, "")
                self._beat(name, len(run.seconds_of), len(run.topologies), now - started)
        return status


def read_run(folder: Path, status: int | None, seconds: float, output: str) -> Run:
    """Return what the recorder has written in `folder`."""
    events = list(_events(folder / recorder.EVENTS))
    phases = [event for event in events if event["event"] == "phase"]
    seconds_of = {event["id"]: 0.0 for event in events if event["event"] == "finished"}
    for phase in phases:
        if phase["id"] in seconds_of:
            seconds_of[phase["id"]] += phase["seconds"]
    reds = tuple(_red(phase) for phase in phases if phase["outcome"] == "failed")
    failed = {red.test for red in reds}
    good = (p["id"] for p in phases if p["phase"] == "call" and p["outcome"] == "passed")
    tests = [t for event in events if event["event"] == "collected" for t in event["tests"]]
    return Run(
        status=status,
        seconds=round(seconds, 1),
        reds=reds,
        passed=tuple(test for test in good if test not in failed),
        topologies={test["id"]: test["topology"] for test in tests},
        docs={test["id"]: test["doc"] for test in tests},
        seconds_of=seconds_of,
        reached=_reached(Path(_file_of_reached(folder))),
        errors=tuple(event["text"] for event in events if event["event"].endswith("error")),
        output="" if status in (0, 1) and seconds_of else output[-20_000:],
    )


def _file_of_reached(folder: Path) -> str:
    return str(folder / "reached.jsonl")


def _reached(file: Path) -> tuple[reached.Reached, ...]:
    return tuple(replace(r, test=recorder.short_id(r.test)) for r in reached.read(file))


def _red(phase: Mapping[str, Any]) -> Red:
    return Red(
        test=phase["id"],
        phase=phase["phase"],
        verdict=phase["verdict"],
        seen_by=phase["seen_by"],
        message=phase["message"],
        text=phase["text"],
    )


def _events(file: Path) -> Iterable[dict[str, Any]]:
    if not file.is_file():
        return
    for line in file.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return  # the last line, while it is being written or after the run was killed
