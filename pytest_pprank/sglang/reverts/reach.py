"""Finds the function objects behind a dotted name, through any decorators."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterable, Iterator
from types import CellType, FunctionType, MethodType, ModuleType

from pytest_pprank.errors import SeamMissing

# A decorator may refer to large objects (a registry, a scheduler); the function itself is near.
_MAX_OBJECTS = 2000


def attribute(module: str, qualname: Iterable[str]) -> object:
    """Return the current value of a dotted name, without binding descriptors.

    Imports the module. Raises `SeamMissing` if the name does not exist.
    """
    found: object = importlib.import_module(module)
    for name in qualname:
        try:
            found = inspect.getattr_static(found, name)
        except AttributeError:
            raise SeamMissing(
                f"cannot reach {module}.{'.'.join(qualname)}: {found!r} has no {name}"
            ) from None
    return found


def functions_behind(start: object) -> Iterator[FunctionType]:
    """Yield the functions reachable from ``start``, the nearest first.

    Follows ``__wrapped__`` and other attributes, closures, defaults, partials, static and class
    methods, properties, and containers of these; never classes or modules.
    """
    queue, seen = [start], {id(start)}
    for found in queue:  # grows during the iteration: breadth first
        if isinstance(found, FunctionType):
            yield found
        for following in _referents(found):
            if id(following) not in seen and len(queue) < _MAX_OBJECTS:
                seen.add(id(following))
                queue.append(following)


def _referents(owner: object) -> Iterator[object]:
    if isinstance(owner, ModuleType | type):
        return
    if isinstance(owner, FunctionType):
        yield from map(_content, owner.__closure__ or ())
        yield from owner.__defaults__ or ()
        yield from (owner.__kwdefaults__ or {}).values()
    elif isinstance(owner, staticmethod | classmethod | MethodType):
        yield owner.__func__
    elif isinstance(owner, property):
        yield from (owner.fget, owner.fset, owner.fdel)
    elif isinstance(owner, functools.partial):
        yield from (owner.func, *owner.args, *owner.keywords.values())
    elif isinstance(owner, list | tuple | set | frozenset):
        yield from owner
    elif isinstance(owner, dict):
        yield from owner.values()
    yield from _attributes(owner)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _attributes(owner: object) -> Iterable[object]:
    try:
        return list(vars(owner).values())
    except TypeError:  # no __dict__
        return ()
