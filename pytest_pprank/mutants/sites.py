"""Which tests come to which mutants: a revert that changes nothing and notes the sites passed.

The site of a mutant is the statement that it changes. For an ``elif`` it is the condition. Notes
are taken by what notes the calls of reverted functions (`reverts.reached`), with a site in the
place of a function.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from pytest_pprank.mutants.points import Mutant
from pytest_pprank.mutants.source import Function
from pytest_pprank.sglang.reverts import reached
from pytest_pprank.sglang.reverts.model import Edit, Patch, Revert
from pytest_pprank.sglang.reverts.place import Place, text_between
from pytest_pprank.sglang.reverts.source import Position


def site_of(mutant: Mutant) -> str:
    """Return the name of a mutant's site: its function, and the start of its statement."""
    row, column = mutant.function.start(mutant.statement)
    return f"{mutant.function.target}@{row},{column}"


def probe_of(mutants: Iterable[Mutant]) -> Revert:
    """Return the revert that notes the sites of `mutants` when a test comes to them."""
    by_function: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        by_function.setdefault(mutant.function.target, []).append(mutant)
    patches = tuple(_patch(found) for found in by_function.values())
    return Revert("probe", patches, title="changes nothing")


def _patch(mutants: list[Mutant]) -> Patch:
    function = mutants[0].function
    edits: dict[tuple[Position, str], Edit] = {}
    for mutant in mutants:
        edit = _note(function, mutant.statement, site_of(mutant))
        assert isinstance(edit.match, Place)
        edits[edit.match.start, site_of(mutant)] = edit
    # from the end to the start: an edit moves what is behind it
    return Patch((function.target,), tuple(edits[key] for key in sorted(edits, reverse=True)))


def _note(function: Function, statement: ast.stmt, site: str) -> Edit:
    note = reached.statement(site)
    if function.is_elif(statement):
        assert isinstance(statement, ast.If)
        place = function.place(statement.test, statement.test, whole=False)
        return Edit(place, text=f"({note} or ({place.text}))")  # a note is None
    start = function.start(statement)
    row = start[0]
    line = function.source.lines[row]
    if line[: start[1]].strip():  # as in "if x: return": what is before it on the line
        return _note(function, _owner(function, statement), site)
    end = row, len(line)
    return Edit(Place(start, end, text_between(function.source.lines, start, end)), "prepend", note)


def _owner(function: Function, statement: ast.stmt) -> ast.stmt:
    above = function.parents[statement]
    assert isinstance(above, ast.stmt)
    return above
