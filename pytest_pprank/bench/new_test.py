"""The ``new-test`` command: writes a test that SGLang's own runner of tests accepts.

Exit code 0: the file is written. 2: a name, suite or folder is wrong, or the file exists already.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from pytest_pprank.errors import UsageError, did_you_mean

_RUNNER = Path("test", "run_suite.py")
"""SGLang's runner, from the root of a checkout."""
_REGISTERED = Path("test", "registered")

_FILE = '''\
"""{title}

    pytest -p pytest_pprank {file}
    python3 {file} -f    # as SGLang's runner does
"""

import sys

import pytest
from pytest_pprank import {imports}

from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time={seconds}, suite="{suite}")

pytestmark = {marks}


{body}

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-p", "pytest_pprank", "-v"]))
'''


@dataclass(frozen=True)
class _Seam:
    folder: str
    """Where SGLang keeps such tests, below test/registered."""
    seconds: int
    """Roughly how long the file takes with two cores."""
    imports: str
    marks: str
    body: str


_PP = _Seam(
    "pp",
    40,
    "assert_kv_balanced, assert_tokens_equal_reference",
    "pytest.mark.pprank(pp=2)  # two pipeline stages",
    """\
def test_{identifier}(engine):
    # Bring all stages into the state in which the bug shows: lengths, chunks, aborts, ...
    # (engine.submit, run_until, abort, drain; @pytest.mark.sglang(...) for server args).
    results = engine.generate([5, 70, 300])
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)
""",
)
_DISAGG = _Seam(
    "disaggregation",
    60,
    "assert_kv_balanced, assert_tokens_equal_reference",
    "pytest.mark.pprank(prefill=2, decode=1)  # stages of each role",
    """\
def test_{identifier}(disagg):
    # Bring both roles into the state in which the bug shows: slow or failing transfers, aborts, ...
    # (disagg.submit, slow_transfer, fail_transfer, abort_when, drain).
    results = disagg.generate([5, 70, 300])
    assert_tokens_equal_reference(results)
    assert_kv_balanced(disagg.scheduler)  # of both roles, also metadata slots and rooms
""",
)
_PROFILER = _Seam(
    "pp",
    30,
    "assert_profiler_ready",
    """[
    pytest.mark.pprank(pp=2),  # two pipeline stages
    pytest.mark.sglang(enable_dynamic_chunking=True),
]""",
    """\
def test_{identifier}(scheduler):
    # The profiler of dynamic chunking has run while the Scheduler started.
    assert_profiler_ready(scheduler)
""",
)
SEAMS = {"pp": _PP, "disagg": _DISAGG, "profiler": _PROFILER}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``new-test`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "new-test",
        help="write a ranked test for SGLang's own tree, which SGLang's runner of tests accepts",
        description="Write test_NAME.py: a test of pipeline stages, of prefill and decode, or of "
        "the profiler, registered with SGLang's CI. An existing file is left alone.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="what it tests, such as abort-between-chunks")
    add("--seam", required=True, choices=SEAMS, help="which part of SGLang it drives")
    add(
        "--output", type=Path, metavar="PATH",
        help="file or folder to write (default: test/registered/... in a checkout of SGLang, else "
        "here)",
    )  # fmt: skip
    add("--suite", default="base-b-test-cpu", metavar="SUITE",
        help="suite of SGLang's CI (default: base-b-test-cpu)")  # fmt: skip
    add("--est-time", type=int, metavar="S", help="seconds that SGLang's CI plans for the file")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run ``new-test``; return the exit code."""
    try:
        print(f"new-test: {_write(args)}")
    except UsageError as error:
        print(f"new-test: error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(args: argparse.Namespace) -> Path:
    name: str = args.name
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise UsageError(f"{name!r} is no name: letters, digits, - and _ (it becomes a file name)")
    if args.est_time is not None and args.est_time < 1:
        raise UsageError(f"--est-time: {args.est_time} is not a number of seconds above 0")
    seam, identifier = SEAMS[args.seam], re.sub(r"\W", "_", name)
    file = _place(args.output, seam, f"test_{identifier}.py")
    if file.exists():
        raise UsageError(f"{file} is there already; it is left alone")
    _check_suite(args.suite, file)
    text = _FILE.format(
        title=f"{name}: in one line, what goes wrong without the fix.",
        file=file.name,
        imports=seam.imports,
        seconds=args.est_time or seam.seconds,
        suite=args.suite,
        marks=seam.marks,
        body=seam.body.format(identifier=identifier),
    )
    file.write_text(text, "utf-8")
    return file


def _place(output: Path | None, seam: _Seam, name: str) -> Path:
    if output is None:
        folder = _REGISTERED / seam.folder
        file = (folder if _RUNNER.is_file() and folder.is_dir() else Path()) / name
    elif output.is_dir():
        file = output / name
    elif not re.fullmatch(r"test_\w+\.py", output.name):
        raise UsageError(
            f"--output {output}: there is no such folder; a file must be called test_*.py, or "
            "pytest and SGLang's runner do not find it"
        )
    else:
        file = output
    if not file.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {file.parent}")
    return file


def _check_suite(suite: str, file: Path) -> None:
    """Raise UsageError for a suite that the checkout around `file`, if there is one, lacks."""
    if not re.fullmatch(r"[\w-]+", suite):
        raise UsageError(f"--suite: {suite!r} is not the name of a suite of SGLang's CI")
    root = next((it for it in file.resolve().parents if (it / _RUNNER).is_file()), None)
    if root is None:
        return
    tree = ast.parse((root / _RUNNER).read_text("utf-8"))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    known = sorted(word for word in words if isinstance(word, str) and "test-cpu" in word)
    if suite not in known:
        raise UsageError(
            f"--suite: {suite!r} is no suite of {root / _RUNNER} for CPUs"
            f"{did_you_mean(suite, known)}; allowed: {', '.join(known)}"
        )
