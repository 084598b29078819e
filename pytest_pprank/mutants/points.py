"""Mutants of functions: places, stable ids, and what the rules of equivalence cut."""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from pytest_pprank.mutants import equivalent
from pytest_pprank.mutants.operators import OPERATORS, Change
from pytest_pprank.mutants.source import Function
from pytest_pprank.sglang.reverts.place import Place


@dataclass(frozen=True)
class Mutant:
    """One breakage of one function.

    `id`: ``module:function:operator:ordinal``, where `ordinal` counts the changes of that operator
    in the function, so that it stays the same when other code moves. `line`: in the file.
    `statement`: the start of the statement that is changed or contains the change, from the start
    of the definition. `cut_by`: the rule by which it is equivalent; "" if it is none.
    """

    id: str
    function: Function
    operator: str
    place: Place
    text: str
    words: str
    line: int
    statement: ast.stmt
    cut_by: str = ""

    @property
    def module(self) -> str:
        """The module that it breaks."""
        return self.function.module


def mutants_of(function: Function) -> Iterator[Mutant]:
    """Yield all mutants of a function in the order of its source, also equivalent ones."""
    seen: set[tuple[Place, str]] = set()
    counts: Counter[str] = Counter()
    for node in _nodes(function):
        for name, operator in OPERATORS.items():
            for change in operator.changes(node, function):
                place = function.place(change.first, change.last, whole=change.whole)
                if (place, change.text) in seen or not _can_be_made(place, function):
                    continue
                seen.add((place, change.text))
                counts[name] += 1
                yield _mutant(function, name, counts[name], change, place)


def _mutant(
    function: Function, operator: str, ordinal: int, change: Change, place: Place
) -> Mutant:
    return Mutant(
        id=f"{function.module}:{function.name}:{operator}:{ordinal}",
        function=function,
        operator=operator,
        place=place,
        text=change.text,
        words=change.words,
        line=function.source.number_of(place.start[0]),
        statement=function.statement_of(change.first),
        cut_by=equivalent.cut_by(change, function),
    )


def _nodes(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of the body in the order of the source.

    Not signatures and decorators, which run at import, nor the inside of f-strings: before Python
    3.12 its positions are wrong.
    """
    pending: list[ast.AST] = list(reversed(function.node.body))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.JoinedStr | ast.ClassDef | ast.Global | ast.Nonlocal):
            continue
        if isinstance(node, ast.stmt | ast.expr | ast.keyword):
            yield node
        pending += reversed(list(_below(node)))


def _below(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return list(node.body)
    if isinstance(node, ast.AnnAssign):
        return [node.value] if node.value is not None else []
    return list(ast.iter_child_nodes(node))


def _can_be_made(place: Place, function: Function) -> bool:
    """Return whether nothing else is on its lines, if it is whole statements.

    Something else is there in ``if x: return`` and ``a(); b()``.
    """
    lines = function.source.lines
    before = lines[place.start[0]][: place.start[1]]
    after = lines[place.end[0]][place.end[1] :]
    return not (place.whole and (before.strip() or after.partition("#")[0].strip()))


def sample(mutants: Iterable[Mutant], size: int | None, seed: int) -> list[Mutant]:
    """Return `size` mutants drawn with `seed`, in their order; all of them if `size` is None."""
    found = list(mutants)
    if size is None or size >= len(found):
        return found
    chosen = set(random.Random(seed).sample(range(len(found)), size))
    return [mutant for place, mutant in enumerate(found) if place in chosen]


def of_operators(mutants: Iterable[Mutant], names: Collection[str]) -> list[Mutant]:
    """Return the mutants of some operators, or all of them if `names` is empty."""
    return [mutant for mutant in mutants if not names or mutant.operator in names]
