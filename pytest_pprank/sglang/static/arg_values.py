"""Checks a server arg's value against the type that SGLang declares, without importing SGLang.

Reads the annotations of ``ServerArgs``: plain ones, or (from 0.5.15 on) wrapped together with help
and choices. A value that cannot be judged from the file alone is accepted: SGLang decides.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping

_PLAIN = {"int": "an int", "float": "a float", "bool": "a bool", "str": "a str"}
_CONTAINERS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("list", "List", "tuple", "Tuple", "set", "Set"), (list, tuple, set)),
    **dict.fromkeys(("dict", "Dict"), (Mapping,)),
}
_WRAPPERS = ("A", "Annotated")


def misfit(annotation: ast.expr, value: object) -> str:
    """Return, in words, which values are allowed if `value` is not; "" if it is or may be."""
    kinds = list(_kinds(_bare(annotation)))
    if not kinds or any(kind.takes(value) for kind in kinds):
        choices = _choices(annotation)
        wrong = choices and isinstance(value, str) and value not in choices
        return f"one of {', '.join(map(repr, choices))}" if wrong else ""
    return " or ".join(dict.fromkeys(kind.words for kind in kinds))


class _Kind:
    """One member of a union; an empty `name` accepts any value."""

    def __init__(self, words: str, name: str = "", values: tuple[object, ...] = ()) -> None:
        self.words = words
        self._name = name
        self._values = values

    def takes(self, value: object) -> bool:
        name = self._name
        if self._values:
            return any(value == each and type(value) is type(each) for each in self._values)
        if name == "str":
            return isinstance(value, (str, os.PathLike))
        if name == "bool":
            return isinstance(value, bool)
        if name in ("int", "float"):
            numbers = (int,) if name == "int" else (int, float)
            return isinstance(value, numbers) and not isinstance(value, bool)
        return isinstance(value, _CONTAINERS[name]) if name else True


def _bare(annotation: ast.expr) -> ast.expr:
    """Return the type in ``A[type, help, ...]``; any other annotation unchanged."""
    if _name(annotation) in _WRAPPERS and isinstance(annotation, ast.Subscript):
        inside = annotation.slice
        return inside.elts[0] if isinstance(inside, ast.Tuple) else inside
    return annotation


def _kinds(node: ast.expr) -> Iterator[_Kind]:
    name = _name(node)
    inside = node.slice if isinstance(node, ast.Subscript) else None
    if isinstance(node, ast.Constant) and node.value is None:
        yield _Kind("None", values=(None,))
    elif isinstance(node, ast.BinOp):
        yield from (*_kinds(node.left), *_kinds(node.right))
    elif inside is not None and name in ("Optional", "Union"):
        for member in inside.elts if isinstance(inside, ast.Tuple) else [inside]:
            yield from _kinds(member)
        if name == "Optional":
            yield _Kind("None", values=(None,))
    elif inside is not None and name == "Literal":
        values = tuple(ast.literal_eval(inside)) if isinstance(inside, ast.Tuple) else ()
        values = values or (ast.literal_eval(inside),)
        yield _Kind(" or ".join(map(repr, values)), values=values)
    elif name in _PLAIN:
        yield _Kind(_PLAIN[name], name)
    elif name in _CONTAINERS:
        yield _Kind(f"a {name.lower()}", name)
    else:
        yield _Kind(ast.unparse(node))


def _choices(annotation: ast.expr) -> tuple[str, ...]:
    """Return the choices that are written out as literals in the annotation."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.keyword) and node.arg == "choices":
            try:
                return tuple(ast.literal_eval(node.value))
            except ValueError:  # the name of a list, which may be extended at run time
                return ()
    return ()


def _name(node: ast.expr) -> str:
    found = node.value if isinstance(node, ast.Subscript) else node
    return found.id if isinstance(found, ast.Name) else ""
