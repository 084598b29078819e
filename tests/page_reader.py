"""Reads a page as a browser does, for the tests of whole runs."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

from pytest_pprank.report.page.parts import unpacked
from pytest_pprank.report.page.timeline import Shown, Timeline


class Page:
    """The page in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = (folder / "index.html").read_text(encoding="utf-8")

    @property
    def tests(self) -> dict[str, str]:
        """The outcome of each test in the table, by the last part of its id."""
        rows = re.findall(
            r'<span class="badge is-(\w+)">\w+</span></td>\s*<td class="name">'
            r'<a href="#[^"]+">([^<]+)</a>',
            self.text,
        )
        return {name.rpartition("::")[2]: outcome for outcome, name in rows}

    def anchors(self, test: str) -> list[str]:
        """Return the addresses of a test: several if it was run again."""
        links = re.findall(r'<a href="#([^"]+)">[^<]*::([^<]+)</a>', self.text)
        return [str(anchor) for anchor, name in links if name == test]

    def view(self, test: str) -> str:
        """Return the part of the page that is about a test."""
        (anchor,) = self.anchors(test)
        found = re.search(rf'id="view-{anchor}".*?</section>', self.text, re.DOTALL)
        assert found
        return found.group()

    def timelines(self) -> dict[str, Timeline]:
        """Return the timelines, by address."""
        data = re.findall(r'id="data-([^"]+)">([^<]+)</script>', self.text)
        return {anchor: unpacked(base64.b64decode(text)) for anchor, text in data}

    def timeline(self, test: str) -> Timeline:
        """Return the timeline of a test."""
        (anchor,) = self.anchors(test)
        return self.timelines()[anchor]

    def trace(self) -> list[dict[str, object]]:
        """Return the events of the trace beside the page."""
        whole = json.loads((self.folder / "trace.json").read_text(encoding="utf-8"))
        found: list[dict[str, object]] = whole["traceEvents"]
        return found


def events(timeline: Timeline, kind: str, rank: int | None = None) -> list[Shown]:
    """Return the events of a kind, of one rank or of all."""
    return [e for e in timeline.events if e.kind == kind and rank in (None, e.lane)]


def arrows(timeline: Timeline) -> Iterator[tuple[str, str, str]]:
    """Yield kind, source and target of each link, as ``0: send to rank 1``."""
    for link in timeline.links:
        ends = (timeline.events[number] for number in (link.source, link.target))
        source, target = (f"{event.lane}: {event.name}" for event in ends)
        yield link.kind, source, target
