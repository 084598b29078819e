"""The ``known-bugs`` command: prints the known bugs of SGLang, or judges a run by them.

Exit code of ``--judge``: 0 if the run failed for its known bugs and nothing else, else 1. 2: an
argument is wrong, or SGLang is not installed and no release was given.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from packaging.version import InvalidVersion, Version

from pytest_pprank.errors import UsageError
from pytest_pprank.known.bugs import FILE, KnownBug, known_bugs
from pytest_pprank.known.judge import judge, read_junit
from pytest_pprank.sglang.static.release import sglang_version

_WIDEST = 100
_SUITE = "pytest --pyargs pytest_pprank.suite --pp-size 2"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``known-bugs`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "known-bugs",
        help="print the known bugs of SGLang that the stock suite shows, or judge a run by them",
        description="Print the known bugs of SGLang: which releases have them, what goes wrong, "
        "where, and how to see it. With --judge: say whether a run of the stock suite failed for "
        "its known bugs alone.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--sglang", metavar="VERSION", help="a release of SGLang (default: the installed one)")
    add("--json", action="store_true", help="print as JSON")
    add(
        "--judge", type=Path, metavar="JUNIT.xml",
        help="exit with 0 if this run (pytest --junitxml) failed in just the tests that are to be "
        "red with that release, each for its known bug; else with 1, and the difference",
    )  # fmt: skip
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run ``known-bugs``; return the exit code."""
    try:
        version = _version(args.sglang)
        if args.judge is not None:
            return _judge(args.judge, version)
        print(_as_json(version) if args.json else "\n".join(_lines(version)))
    except UsageError as error:
        print(f"known-bugs: error: {error}", file=sys.stderr)
        return 2
    return 0


def _version(given: str | None) -> str | None:
    if given is None:
        return sglang_version()
    try:
        return str(Version(given))
    except InvalidVersion:
        raise UsageError(f"--sglang {given}: not a version, such as 0.5.21") from None


def _judge(file: Path, version: str | None) -> int:
    if version is None:
        raise UsageError(
            "SGLang is not installed: name the release of that run by --sglang VERSION"
        )
    red = [bug for bug in known_bugs() if bug.red and bug.affects(version)]
    cases = read_junit(file)
    problems = judge(cases, red)
    failed = sum(case.failed for case in cases)
    names = ", ".join(bug.id for bug in red) or "none that makes it red"
    print(f"SGLang {version}, known bugs: {names}; {failed} of {len(cases)} tests failed")
    print("\n".join(problems) if problems else "as it should be")
    return 1 if problems else 0


def _as_json(version: str | None) -> str:
    return json.dumps([_values(bug, version) for bug in known_bugs()], indent=2)


def _values(bug: KnownBug, version: str | None) -> dict[str, object]:
    return {
        **{field.name: getattr(bug, field.name) for field in fields(bug)},
        "versions": bug.releases,
        "affects": None if version is None else bug.affects(version),
    }


def _lines(version: str | None) -> Iterator[str]:
    bugs = known_bugs()
    here = [bug for bug in bugs if bug.affects(version)]
    if version is None:
        yield f"{len(bugs)} known bugs; SGLang is not installed"
    else:
        yield f"SGLang {version} has {len(here)} of {len(bugs)} known bugs"
    for bug in here:
        yield from _entry(bug)
    others = [bug for bug in bugs if bug not in here]
    if others and here:
        yield f"\nNot in SGLang {version}:"
    for bug in others:
        yield from _entry(bug)
    yield f"\n({FILE})"


def _entry(bug: KnownBug) -> Iterator[str]:
    yield f"\n{bug.id}"
    fate = "the suite is red" if bug.red else "the suite expects it, strictly"
    fate = fate if bug.strict else f"the suite expects it, not strictly: {bug.reason}"
    yield from _field("versions", f"{bug.releases} (seen in {', '.join(bug.seen)}); {fate}")
    yield from _field("devices", ", ".join(bug.devices))
    yield from _field("stages", f"{bug.stages} or more" if bug.stages > 1 else "")
    yield from _field("symptom", bug.symptom)
    yield from _field("cause", bug.cause)
    yield from _field("where", "; ".join(bug.where))
    yield from _field("to see it", "; ".join(bug.see))
    yield f"{'':12}{_command(bug)}"
    yield from _field("it says", f"{bug.raises}: {bug.says}")
    yield from _field("link", bug.link or "none known")


def _command(bug: KnownBug) -> str:
    """Return the command that shows the bug, on one line to copy."""
    tests = (" and ".join(test.split("::")[1:]) for test in bug.see)
    words = [*_SUITE.split(), "-k", " or ".join(dict.fromkeys(tests))]
    words += ["--pprank-device", bug.devices[0]] if bug.devices else []
    return shlex.join([*words, *([] if bug.red else ["--runxfail"])])


def _field(name: str, text: str) -> Iterator[str]:
    if text:
        width = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 0)).columns)
        wrapper = textwrap.TextWrapper(
            width,
            initial_indent=f"  {name:<10}",
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
            break_long_words=False,
        )
        yield from wrapper.wrap(text)
