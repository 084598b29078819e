"""The ``new-regression`` command: writes a revert file and a test to fill in.

Exit code 0: both files are written. 2: a name, target or folder is wrong, or a file exists already.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.reverts.locate import Definition, find_definition, version_of
from pytest_pprank.sglang.reverts.source import Refused
from pytest_pprank.sglang.static import release

_REVERT = """\
id: {name}
{pr}title: 'in one line: what goes wrong without the fix'
{url}symptom: 'what a user sees, and where'
patches:
- target: {target}{where}
  # or a list of dotted names, for SGLang versions in which the function is elsewhere
  edits:
  # `match` is one place in the function, compared as syntax: layout, comments and quotes do not
  # count. Whole statements, or a part of one (the header of an `if`, an argument of a call):
  - match: |
      the_statements_of_the_fix()
    replacement: ''     # '' takes them out; or give other code; or use `prepend:` or `append:`
  # The same by shape, which outlives small changes: the kind of statement (a class of Python's
  # ast), names that occur in it, names it assigns, and if need be the one part to replace:
  # - match:
  #     kind: If
  #     mentions: [some_attribute, some_function]
  #     assigns: [some_attribute]
  #     part: test
  #   replacement: 'True'
"""

_TEST = '''\
"""{title}: {target}

Green as SGLang is, red with the fix taken out:

    pytest -p pytest_pprank --pp-size 2 {test}
    pytest -p pytest_pprank --pp-size 2 {test} --pprank-revert {revert}
"""

from typing import Any

from pytest_pprank import assert_kv_balanced, assert_tokens_equal_reference


def test_{identifier}(engine: Any) -> None:
    # Bring all stages into the state in which the bug shows: lengths, chunks, aborts, ...
    # (engine.submit, run_until, abort, drain; @pytest.mark.sglang(...) for server args).
    results = engine.generate([5, 70, 300])
    assert_tokens_equal_reference(results)
    assert_kv_balanced(engine.scheduler)
'''


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``new-regression`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "new-regression",
        help="write a revert file and a test for a bug, to be filled in",
        description="Write NAME.yaml, which takes a fix out of SGLang, and a test that goes red "
        "with it. Existing files are left alone.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="id of the bug, such as pr-12345 or kv-leak-on-abort")
    add("--target", required=True, metavar="DOTTED", help="the function that holds the fix")
    add("--pr", type=int, metavar="N", help="number of the pull request with the fix")
    add("--dir", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run ``new-regression``; return the exit code."""
    try:
        for file in _write(args):
            print(f"new-regression: {file}")
    except UsageError as error:
        print(f"new-regression: error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(args: argparse.Namespace) -> list[Path]:
    name: str = args.name
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise UsageError(f"{name!r} is no name: letters, digits, - and _ (it becomes a file name)")
    if args.pr is not None and args.pr < 1:
        raise UsageError(f"--pr: {args.pr} is not the number of a pull request")
    folder: Path = args.dir
    if not folder.is_dir():
        raise UsageError(f"--dir {folder}: there is no such folder")
    where = _where(args.target)
    identifier = re.sub(r"\W", "_", name)
    revert, test = folder / f"{name}.yaml", folder / f"test_{identifier}.py"
    for file in (revert, test):
        if file.exists():
            raise UsageError(f"{file} is there already; it is left alone")
    texts = {
        revert: _REVERT.format(
            name=name,
            pr="" if args.pr is None else f"pr: {args.pr}\n",
            url=""
            if args.pr is None
            else f"url: https://github.com/sgl-project/sglang/pull/{args.pr}\n",
            target=args.target,
            where=where,
        ),
        test: _TEST.format(
            title=name if args.pr is None else f"{name} (SGLang PR {args.pr})",
            target=args.target,
            identifier=identifier,
            test=test.name,
            revert=revert.name,
        ),
    }
    for file, text in texts.items():
        file.write_text(text, "utf-8")
    return list(texts)


def _where(target: str) -> str:
    """Return a comment with the function's place; raises UsageError if it is not found."""
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UsageError(f"--target: {target!r} is not the dotted name of a function")
    root = release.package_root()
    if root is None:
        print("new-regression: SGLang is not installed: --target is not checked", file=sys.stderr)
        return ""
    try:
        found: Definition = find_definition(target, root)
    except Refused as refusal:
        raise UsageError(f"--target {target} ({version_of(root)}): {refusal}") from None
    place = found.path.relative_to(root.parent)
    return f"\n  # {version_of(root)}: {place}, line {found.lineno}"
