"""A part of the page: what is known of one test, or of one process of the run, as files."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from pytest_pprank.report.page.links import Link
from pytest_pprank.report.page.timeline import Lane, Missing, Shown, Timeline
from pytest_pprank.report.page.waits import Edge, Node, Wait, WaitGraph

_T = TypeVar("_T")
_TEST, _RUN, _TIMELINE = ".test.json", ".run.json", ".timeline"


@dataclass(frozen=True)
class TestPart:
    """A test. `anchor`: its name in the page's address. `started`: seconds since the epoch.

    `sections`: titled texts besides the failure, such as stacks. `group`: of which worker group
    its ranks were; `started_group`: how that group was started, for its first test; `replaced`:
    why the group ran no other test. `summary`: the lines of `failure` that say what was wrong.
    `note`: why there is no timeline. `events`: how many events the timeline has.
    """

    __test__ = False
    nodeid: str
    anchor: str
    topology: str
    ranks: int
    outcome: str
    verdict: str
    seconds: float
    started: float
    group: str = ""
    started_group: str = ""
    replaced: str = ""
    summary: str = ""
    failure: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)
    again: str = ""
    waits: WaitGraph | None = None
    note: str = ""
    events: int = 0
    timeline: bytes = field(default=b"", repr=False)
    """The compressed JSON of `Timeline.as_data`; empty if there is none."""


@dataclass(frozen=True)
class RunPart:
    """A process that has run tests: pytest itself, or a worker of pytest-xdist (`worker`)."""

    worker: str = ""
    tally: str = ""
    checks_off: list[str] = field(default_factory=list)
    reverted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def packed(timeline: Timeline) -> bytes:
    """Return a timeline as the page has it: compressed JSON, in ASCII."""
    return zlib.compress(json.dumps(timeline.as_data(), separators=(",", ":")).encode(), 6)


def unpacked(data: bytes) -> Timeline:
    """Return the timeline of `packed`."""
    values = json.loads(zlib.decompress(data))
    return Timeline(
        lanes=[Lane(**each) for each in values["lanes"]],
        events=[Shown(**each) for each in values["events"]],
        links=[Link(**each) for each in values["links"]],
        unmet=[Missing(**each) for each in values["unmet"]],
        began=values["began"],
        seconds=values["seconds"],
        bands=values["bands"],
    )


def anchor_of(nodeid: str, attempt: int = 1) -> str:
    """Return the name of a test in the page's address: readable, and different for each test."""
    name = nodeid.rpartition("/")[2]
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")[:80]
    again = f"-{attempt}" if attempt > 1 else ""
    return f"{slug}-{zlib.crc32(nodeid.encode(errors='replace')):08x}{again}"


def write_test(folder: Path, name: str, part: TestPart) -> None:
    """Write the part of a test; raises OSError."""
    values = asdict(part)
    timeline = values.pop("timeline")
    if timeline:
        (folder / f"{name}{_TIMELINE}").write_bytes(timeline)
    # last, and at once: a part without its timeline is not found
    _write(folder / f"{name}{_TEST}", values)


def write_run(folder: Path, name: str, part: RunPart) -> None:
    """Write the part of a process; raises OSError."""
    _write(folder / f"{name}{_RUN}", asdict(part))


def _write(path: Path, values: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(path)


def read_tests(folder: Path) -> Iterator[TestPart]:
    """Yield the parts of tests, in the order in which they began."""
    found = []
    for path in folder.glob(f"*{_TEST}"):
        values = json.loads(path.read_text(encoding="utf-8"))
        timeline = path.with_name(path.name.removesuffix(_TEST) + _TIMELINE)
        values["timeline"] = timeline.read_bytes() if timeline.exists() else b""
        values["sections"] = [(title, text) for title, text in values["sections"]]
        values["waits"] = _graph(**values["waits"]) if values["waits"] else None
        found.append(TestPart(**values))
    yield from sorted(found, key=lambda part: part.started)


def read_runs(folder: Path) -> list[RunPart]:
    """Return the parts of processes, by name."""
    paths = sorted(folder.glob(f"*{_RUN}"))
    return [RunPart(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def _graph(
    box: str,
    nodes: list[dict[str, object]],
    edges: list[dict[str, object]],
    waits: list[dict[str, object]],
    lines: list[str],
) -> WaitGraph:
    return WaitGraph(
        box,
        [_made(Node, each) for each in nodes],
        [_made(Edge, each) for each in edges],
        [_made(Wait, each) for each in waits],
        lines,
    )


def _made(kind: Callable[..., _T], values: dict[str, object]) -> _T:
    return kind(**values)
