"""Makes the page and the trace of a run from its parts."""

from __future__ import annotations

import base64
import platform
import shlex
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

from pytest_pprank._version import __version__
from pytest_pprank.report.page.folder import INDEX, MARK, TRACE
from pytest_pprank.report.page.parts import RunPart, TestPart, read_runs, read_tests
from pytest_pprank.report.page.perfetto import write_trace
from pytest_pprank.report.page.plain import plain

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("axis.js", "timeline.js", "panel.js", "list.js", "view.js", "page.js")
_VERSIONS = ("sglang", "torch", "pytest")
_ORDER = ("failed", "interrupted", "xfailed", "xpassed", "skipped", "passed")


@dataclass(frozen=True)
class About:
    """The run: when it began and for how long, its command line and its end, in words."""

    began: float
    seconds: float
    command: list[str]
    end: str = ""
    selection: str = "failed"


@dataclass(frozen=True)
class Topology:
    """The tests of one topology."""

    name: str
    tests: list[TestPart] = field(default_factory=list)

    @property
    def counts(self) -> str:
        """How many tests ended in which way, in words."""
        return counts_of(self.tests)


def counts_of(tests: list[TestPart]) -> str:
    """Return how many tests ended in which way, in words."""
    found = Counter(test.outcome for test in tests)
    ordered = sorted(found, key=lambda it: _ORDER.index(it) if it in _ORDER else len(_ORDER))
    return ", ".join(f"{found[outcome]} {outcome}" for outcome in ordered) or "none"


def build(folder: Path, parts: Path, about: About) -> None:
    """Write the page and the trace to `folder`; raises OSError."""
    tests = list(read_tests(parts))
    page = render(tests, read_runs(parts), about)
    for name, write in (
        (TRACE, lambda path: write_trace(path, tests)),
        (INDEX, lambda path: path.write_text(page, encoding="utf-8", errors="replace")),
    ):
        partial = parts / name
        write(partial)
        partial.replace(folder / name)


def render(tests: list[TestPart], runs: list[RunPart], about: About) -> str:
    """Return the page. Every text of a test is escaped; timelines are base64."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_ASSETS),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    ordered = sorted(tests, key=lambda test: test.topology)
    return environment.get_template("page.html.jinja").render(
        mark=MARK,
        tests=tests,
        topologies=[Topology(name, list(own)) for name, own in groupby(ordered, _topology)],
        counts=counts_of(tests),
        runs=runs,
        began=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(about.began)),
        seconds=about.seconds,
        command=plain(shlex.join(about.command)),
        end=plain(about.end),
        selection=about.selection,
        versions=_versions(),
        style=(_ASSETS / "page.css").read_text(encoding="utf-8"),
        script="\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS),
    )


def _topology(test: TestPart) -> str:
    return test.topology


def _versions() -> list[str]:
    found = [f"pytest-pprank {__version__}", f"Python {platform.python_version()}"]
    for name in _VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
