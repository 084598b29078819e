"""Checks and applies a revert: first plans every edit, then changes the functions in place."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

from pytest_pprank.errors import DoesNotFit, SeamMissing, UsageError
from pytest_pprank.sglang.static.installed import inspect_package

from . import reached
from .locate import Definition, TargetMissing, find_definition, version_of
from .match import Shape, Text
from .model import Applied, Edit, Edited, Patch, Revert
from .place import Place
from .reach import attribute, functions_behind
from .source import FunctionSource, Misfit, Refused, Span, holds_code

_KIND = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@dataclass(frozen=True)
class _Plan:
    """A definition, and the code that it compiles to before and after the edits."""

    definition: Definition
    edited: FunctionSource
    old: CodeType
    new: CodeType


@dataclass(frozen=True)
class _Change:
    """The functions that run the old code; empty if they already run the new code."""

    plan: _Plan
    functions: tuple[FunctionType, ...]
    filename: str


def check(revert: Revert, package_root: Path) -> None:
    """Check on SGLang's source files that each edit matches exactly one place.

    `package_root` is the folder of the package, ``.../site-packages/sglang``. Imports nothing of
    SGLang. Raises `DoesNotFit` for a target or a match that is missing or ambiguous, and
    `UsageError` for an edit that matches but cannot be made.
    """
    edited_in(revert, package_root)


def apply(revert: Revert) -> list[Applied]:
    """Change the functions in this process; call it before SGLang is used.

    All patches are checked before the first function changes. Applying the same revert again
    changes nothing (`Applied.already`). Raises as `check`; also `UsageError` for a function that
    runs other code than its file contains, and `SeamMissing` for one that cannot be reached by its
    dotted name.
    """
    root = _imported_root(revert)
    with _quietly():
        changes = [_reach(revert, plan, root) for plan in _plan(revert, root)]
        return [_commit(change) for change in changes]


def edited_in(revert: Revert, package_root: Path) -> list[Edited]:
    """Return the functions of this SGLang that the revert edits; raises as `check`."""
    with _quietly():
        return [
            Edited(plan.definition.target, plan.definition.source.node, plan.edited.node)
            for plan in _plan(revert, package_root)
        ]


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress warnings about SGLang's source (with -W error they would be errors), and disable gc.

    Building syntax trees triggers collections of everything that SGLang has allocated: with
    0.5.21 imported, its largest module took 1 s with and 0.1 s without them.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()


def _imported_root(revert: Revert) -> Path:
    package = importlib.import_module(revert.patches[0].targets[0].partition(".")[0])
    return Path(next(iter(package.__path__)))


def _plan(revert: Revert, package_root: Path) -> list[_Plan]:
    edited: dict[str, tuple[Definition, FunctionSource]] = {}
    for patch in _for_this_release(revert, package_root):
        with _named(revert, " or ".join(patch.targets), package_root):
            definition = _first_defined(patch, package_root)
        target = definition.target
        with _named(revert, target, package_root):
            _, source = edited.get(target, (definition, definition.source))
            edited[target] = definition, _edit(source, patch)
    plans = []
    for target, (definition, source) in edited.items():
        with _named(revert, target, package_root):
            if reached.wanted():
                source = _with_preamble(source, reached.statement(target))
            plans.append(_compile(definition, source))
    return plans


def _for_this_release(revert: Revert, package_root: Path) -> list[Patch]:
    """Return the patches for the SGLang in `package_root`; raises DoesNotFit if there is none."""
    here = inspect_package(package_root)
    patches = [it for it in revert.patches if not it.releases or here.is_in(it.releases)]
    if not patches:
        made_for = ", ".join(dict.fromkeys(patch.releases for patch in revert.patches))
        raise DoesNotFit(
            f"revert {revert.id} ({version_of(package_root)}): no patch of it is for this release; "
            f"they are for SGLang {made_for}"
        )
    return patches


@contextmanager
def _named(revert: Revert, target: str, package_root: Path) -> Iterator[None]:
    """Turn a refusal into an error for the user that names revert, target and SGLang's version."""
    try:
        yield
    except Refused as refusal:
        text = f"revert {revert.id}: {target} ({version_of(package_root)}): {refusal}"
        if not isinstance(refusal, Misfit):
            raise UsageError(text) from None
        made_for = f"; it is made for SGLang {revert.versions}" if revert.versions else ""
        raise DoesNotFit(text + made_for) from None


def _first_defined(patch: Patch, package_root: Path) -> Definition:
    """Return the definition of the first target that exists; raises TargetMissing if none does."""
    reasons = []
    for target in patch.targets:
        try:
            return find_definition(target, package_root)
        except TargetMissing as missing:
            reasons.append(str(missing))
    raise TargetMissing("; ".join(reasons))


def _edit(source: FunctionSource, patch: Patch) -> FunctionSource:
    for number, edit in enumerate(patch.edits, 1):
        spans = edit.match.find(source)
        if len(spans) != 1:
            raise Misfit(f"edit {number} looks for {_not_one(edit.match, source, spans)}")
        source = _make(edit, source, spans[0])
    return _with_preamble(source, patch.preamble) if holds_code(patch.preamble) else source


def _make(edit: Edit, source: FunctionSource, span: Span) -> FunctionSource:
    if edit.action == "prepend":
        return source.prepend(span, edit.text)
    if edit.action == "append":
        return source.append(span, edit.text)
    return source.replace(span, edit.text)


def _not_one(match: Text | Shape | Place, source: FunctionSource, spans: list[Span]) -> str:
    if spans:
        lines = ", ".join(str(source.number_of(row)) for row in sorted(s.start[0] for s in spans))
        also = ", also with its comments and blank lines" if isinstance(match, Text) else ""
        where = f"{len(spans)} times (lines {lines})"
        return f"{match.describe()}, which is there {where}: ambiguous{also}"
    text = f"{match.describe()}, which is not there"
    statement = match.nearest(source)
    if statement is None:
        return text
    row = source.span(statement, statement, whole=True).start[0]
    return f"{text}; nearest, line {source.number_of(row)}: `{source.lines[row].strip()}`"


def _with_preamble(source: FunctionSource, preamble: str) -> FunctionSource:
    body = source.node.body
    documented = ast.get_docstring(source.node, clean=False) is not None
    if documented and len(body) == 1:
        return source.append(source.span(body[0], body[0], whole=True), preamble)
    first = body[1] if documented else body[0]
    return source.prepend(source.span(first, first, whole=True), preamble)


def _compile(definition: Definition, edited: FunctionSource) -> _Plan:
    filename = str(definition.path)
    old = definition.compile(definition.source, filename)
    new = definition.compile(edited, filename, keep=old.co_freevars)
    if new.co_freevars != old.co_freevars:
        added = ", ".join(set(new.co_freevars) - set(old.co_freevars))
        raise Refused(f"the edit makes the function close over {added}, which it did not before")
    if (new.co_flags ^ old.co_flags) & _KIND:
        raise Refused("the edit makes a generator of a plain function, or the other way round")
    return _Plan(definition, edited, old, new)


def _reach(revert: Revert, plan: _Plan, package_root: Path) -> _Change:
    """Find the functions behind the dotted name that run the old code: all of them must change."""
    definition = plan.definition
    behind = list(functions_behind(attribute(definition.module, definition.qualname)))
    running_old = tuple(f for f in behind if f.__code__ == plan.old)
    running_new = [f for f in behind if f.__code__ == plan.new]
    if running_old or running_new:
        filename = (*running_old, *running_new)[0].__code__.co_filename
        return _Change(plan, running_old, filename)
    where = f"{definition.target} ({version_of(package_root)})"
    if any(_is_at(f.__code__, plan.old) for f in behind):
        raise UsageError(
            f"revert {revert.id}: {where} runs other code than {definition.path} holds: another "
            "revert or hook has changed it, or the file was changed after its import"
        )
    raise SeamMissing(
        f"revert {revert.id}: cannot reach {where}: nothing behind that name runs the code that "
        f"{definition.path} has in line {definition.lineno}"
    )


def _is_at(code: CodeType, other: CodeType) -> bool:
    return (code.co_name, code.co_firstlineno) == (other.co_name, other.co_firstlineno)


def _commit(change: _Change) -> Applied:
    plan = change.plan
    definition = plan.definition
    new = definition.compile(plan.edited, change.filename, keep=plan.old.co_freevars)
    for function in change.functions:
        function.__code__ = new  # in place, so that every alias and wrapper runs it
    already = not change.functions
    return Applied(definition.target, change.filename, definition.lineno, already)
