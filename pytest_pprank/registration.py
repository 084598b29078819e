"""Registers the checks and faults of other plugins, once per pytest process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from sys import modules

import pytest

from pytest_pprank.checks import CHECKS
from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.faults import FAULTS
from pytest_pprank.names import ALL, NONE
from pytest_pprank.registry import Registry, Row

_REGISTRIES: tuple[tuple[str, Registry], ...] = (
    ("pytest_pprank_register_checks", CHECKS),
    ("pytest_pprank_register_faults", FAULTS),
)
_DEVICES = ("cpu", "sim", "cuda")
_TYPES = {"name": str, "about": str, "sglang": bool, "opt_in": bool}
_ASKED_HOOKS: pytest.StashKey[list[object]] = pytest.StashKey()
"""The implementations of our hooks that existed when the hooks were called."""


def register(config: pytest.Config, *, strict: bool) -> None:
    """Call our hooks and register the rows they return until this run ends. Raises UsageError.

    `strict`: False on ranks, which accept any name that the controller has accepted.
    """
    before = [(registry, registry.others, registry.strict) for _, registry in _REGISTRIES]

    def forget() -> None:
        for registry, others, was_strict in before:
            registry.others, registry.strict = others, was_strict

    config.add_cleanup(forget)
    config.stash[_ASKED_HOOKS] = []
    for _, registry in _REGISTRIES:
        registry.others, registry.strict = (), strict
    for hook, registry in _REGISTRIES:
        for row in _rows(config, hook, registry.kind):
            _check(row, f"{hook}: {row.what} {row.name!r}")
            registry.others = (*registry.others, row)


def check_late(config: pytest.Config) -> None:
    """Raise UsageError if a plugin was loaded after the hooks were called: its rows are missing."""
    for hook, _ in _REGISTRIES:
        for impl in getattr(config.hook, hook).get_hookimpls():
            if impl.function not in config.stash[_ASKED_HOOKS]:
                raise UsageError(
                    f"{hook} of {impl.plugin_name} comes too late: pytest has loaded it while it "
                    "collected. Move the hook to the conftest.py of the folder that pytest is "
                    "given, or of the root folder, or to a plugin (-p)"
                )


def _rows(config: pytest.Config, hook: str, kind: type[Row]) -> Iterator[Row]:
    caller = getattr(config.hook, hook)
    config.stash[_ASKED_HOOKS] += [impl.function for impl in caller.get_hookimpls()]
    # pluggy calls the last registered plugin first; reversed, the names are in registration order
    for given in reversed(caller(config=config)):
        if not isinstance(given, (list, tuple)):
            raise UsageError(f"{hook}: must return a list of {kind.__name__}, not {given!r}")
        for row in given:
            if not isinstance(row, kind):
                raise UsageError(f"{hook}: {row!r} is not a pytest_pprank.{kind.__name__}")
            yield row


def _check(row: Row, where: str) -> None:
    for problem in _problems(row):
        raise UsageError(f"{where}: {problem}")


def _problems(row: Row) -> Iterator[str]:
    from pytest_pprank.sglang.events.places import HOOKS

    for field, kind in _TYPES.items():
        if not isinstance(getattr(row, field), kind):
            yield f"{field} must be {kind.__name__}, not {getattr(row, field)!r}"
    if not row.name.isidentifier() or row.name in (ALL, NONE):
        yield "the name must be an identifier, such as my_check, and not 'all' or 'none'"
    for _, registry in _REGISTRIES:
        if registry.find(row.name) is not None:
            yield f"the name is taken by another {registry.kind.what}"
    yield from _list_problems("devices", row.devices, _DEVICES)
    yield from _list_problems("hooks", row.hooks, [place.name for place in HOOKS])
    yield from _place_problems("place", row.place, "module:Class")
    if row.compare != "":
        yield from _place_problems("compare", row.compare, "module:function")
    yield from _class_problems(row)


def _list_problems(field: str, given: object, known: Sequence[str]) -> Iterator[str]:
    if not isinstance(given, (list, tuple)):
        yield f"{field} must be a list or tuple, not {given!r}"
        return
    for word in given:
        if word not in known:
            near = did_you_mean(str(word), known)
            yield f"{field}: there is no {word!r}{near}; known: {', '.join(known)}"


def _place_problems(field: str, place: object, form: str) -> Iterator[str]:
    if callable(place):
        return
    module, colon, name = place.partition(":") if isinstance(place, str) else ("", "", "")
    if not (module and colon and name):
        yield f"{field} {place!r} is not {form!r}, nor such a thing itself"
    elif not _importable(module):
        yield f"{field} {place!r}: there is no module {module!r} that could be imported"
    elif module in modules and not hasattr(modules[module], name.partition(".")[0]):
        yield f"{field} {place!r}: {module} has no {name!r}"


def _importable(module: str) -> bool:
    try:
        return module in modules or find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _class_problems(row: Row) -> Iterator[str]:
    """Yield what is wrong with a row's class, if its module is imported already.

    Importing another plugin's module here could take long.
    """
    if isinstance(row.place, str) and row.place.partition(":")[0] not in modules:
        return
    base = type(row)(row.name, "", row.base).load()
    if not (isinstance(row.load(), type) and issubclass(row.load(), base)):
        yield f"place {row.place!r} is not a class with the base pytest_pprank.{base.__name__}"
