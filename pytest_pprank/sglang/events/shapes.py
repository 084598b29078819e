"""Finds out which shape a place has in an SGLang, from its source files or its classes.

Reading the files (`SourceInspector`) takes a tenth of a second and imports nothing; the header of a
run uses it. Inspecting imported classes (`ClassInspector`) is what ranks do, and is authoritative.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pytest_pprank.sglang.events.places import Methods, Place, Shape

_MEMBER = r"(?:(?:async )?def (?P<function>\w+)|class (?P<cls>\w+)|(?P<field>\w+) ?[:=])"


class Members(Protocol):
    """Members of a class or module by name, with the parameters of functions."""

    def __contains__(self, name: object, /) -> bool:
        """Return whether there is a member of that name."""

    def __getitem__(self, name: str, /) -> tuple[str, ...]:
        """Return the parameter names of a function."""


class Inspector(Protocol):
    """A way of inspecting SGLang."""

    def members(self, module: str, owner: str) -> Members | None:
        """Return the members of a class, or of a module if `owner` is empty; None if missing."""


class Found(NamedTuple):
    """The result for a place: its shape, or None and what the closest shape lacks."""

    shape: Shape | None
    lacks: tuple[str, ...] = ()


def find_shape(place: Place, inspector: Inspector) -> Found:
    """Return the first shape of a place that is complete."""
    lacking = []
    for shape in place.shapes:
        lacks = tuple(problem for it in shape.methods for problem in problems(it, inspector))
        if not lacks and not any(_has(it, inspector) for it in shape.without):
            return Found(shape)
        if lacks:
            lacking.append(lacks)
    return Found(None, min(lacking, key=len))


def _has(methods: Methods, inspector: Inspector) -> bool:
    members = inspector.members(methods.module, methods.owner)
    return members is not None and any(name in members for name in methods.names)


def problems(methods: Methods, inspector: Inspector) -> Iterator[str]:
    """Yield, in words, which methods are missing or have unknown parameters."""
    members = inspector.members(methods.module, methods.owner)
    if members is None:
        yield f"{methods.module}.{methods.owner}".rstrip(".")
        return
    for name in methods.names:
        label = f"{methods.owner or methods.module}.{name}"
        if name not in members:
            yield label
            continue
        for position, allowed in methods.takes.items():
            found = members[name]
            if position >= len(found) or found[position] not in allowed:
                has = ", ".join(found)
                yield f"parameter {allowed[0]!r} of {label}({has})"
                break


class SourceInspector:
    """Reads the source files of the package in `root`; of a class, only its own body."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def members(self, module: str, owner: str) -> Members | None:
        """Return what the body of a class or module defines."""
        text = self._text(module)
        if text is None:
            return None
        if owner:
            text = _class_body(text, owner)
        return None if text is None else _members_in(text, 4 if owner else 0)

    def _text(self, module: str) -> str | None:
        path = self._root.parent.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file.read_text(encoding="utf-8")
        return None


def _class_body(text: str, owner: str) -> str | None:
    """Return the lines of a class, found by indentation: parsing whole files is slow."""
    start = re.search(rf"^class {owner}\b", text, re.MULTILINE)
    if start is None:
        return None
    end = re.compile(r"^[^\s#)]", re.MULTILINE).search(text, start.end())
    return text[start.end() : end.start() if end else len(text)]


def _members_in(text: str, indent: int) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    begins = rf"^ {{{indent}}}" + _MEMBER
    for match in re.finditer(begins, text, re.MULTILINE):
        name = match["function"] or match["cls"] or match["field"]
        found[name] = _parameters(text[match.start() :]) if match["function"] else ()
    if indent == 0:
        found.update(dict.fromkeys(_imported(text), ()))
    return found


def _parameters(text: str) -> tuple[str, ...]:
    """Return the parameter names of the function at the beginning of `text`."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == ":" and depth == 0:
            signature = text[:place].strip()
            break
    else:
        return ()
    function: Any = ast.parse(f"{signature}: ...").body[0]
    arguments = function.args
    return tuple(it.arg for it in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def _imported(text: str) -> Iterator[str]:
    for block in re.findall(r"^from [\w.]+ import (?:\(([^)]*)\)|([^\n(]+))", text, re.MULTILINE):
        for name in re.split(r"[,\s]+", block[0] or block[1]):
            if name.isidentifier():
                yield name
    yield from re.findall(r"^import (\w+)$", text, re.MULTILINE)


class ClassInspector:
    """Inspects imported modules: a class together with all its subclasses."""

    def members(self, module: str, owner: str) -> Members | None:
        """Return what a class and its subclasses, or a module, define."""
        try:
            loaded = import_module(module)
        except ImportError:
            return None
        if not owner:
            return _Loaded([vars(loaded)])
        cls = getattr(loaded, owner, None)
        if cls is None:
            return None
        own = [vars(one) for one in family(cls)]
        return _Loaded([*own, *(space.get("__annotations__", {}) for space in own)])


class _Loaded:
    """Members that are looked up on demand: signatures take time."""

    def __init__(self, spaces: Sequence[Mapping[str, object]]) -> None:
        self._spaces = spaces

    def __contains__(self, name: object) -> bool:
        return any(name in space for space in self._spaces)

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return _signature(next(space[name] for space in self._spaces if name in space))


def family(cls: type) -> Iterable[type]:
    """Yield a class and all its subclasses, recursively."""
    yield cls
    subclass: type
    for subclass in cls.__subclasses__():
        yield from family(subclass)


def _signature(value: object) -> tuple[str, ...]:
    function = getattr(value, "__func__", value)  # of a classmethod or staticmethod
    if not callable(function) or not inspect.isfunction(inspect.unwrap(function)):
        return ()
    return tuple(inspect.signature(function).parameters)
