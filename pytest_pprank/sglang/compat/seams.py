"""Helpers for code that SGLang's releases change: clear errors for missing names and parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pytest_pprank.errors import SeamMissing
from pytest_pprank.sglang.static.installed import installed


def missing(what: str) -> SeamMissing:
    """Return an error that names the installed SGLang and what it lacks."""
    return SeamMissing(f"SGLang {installed() or '(not found)'} has no {what}")


def need(owner: object, name: str) -> Any:
    """Return ``owner.name``; raises SeamMissing, which names both, if it does not exist."""
    try:
        return getattr(owner, name)
    except AttributeError:
        label = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", None)
        raise missing(f"attribute {name!r} on {label or type(owner).__qualname__}") from None


def fill(function: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Select from `known` the keyword arguments that the signature of `function` accepts.

    Raises SeamMissing if `function` requires a parameter that is not in `known`. So a new SGLang
    fails here with a clear message, instead of with a TypeError deep inside a rank.
    """
    chosen: dict[str, Any] = {}
    for name, parameter in _parameters(function).items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in known:
            chosen[name] = known[name]
        elif parameter.default is parameter.empty:
            label = getattr(function, "__qualname__", repr(function))
            raise SeamMissing(
                f"SGLang {installed() or '(not found)'}: {label} requires {name!r}, "
                "which this plugin does not know how to give"
            )
    return chosen


def takes(function: Callable[..., Any], parameter: str) -> bool:
    """Return whether `function` has a parameter of that name."""
    return parameter in _parameters(function)


def _parameters(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    if isinstance(function, type):
        return _of_class(function)
    return inspect.signature(function).parameters  # maybe a method, which would keep its object


@functools.cache
def _of_class(made: type) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class; those of msgspec's messages take a millisecond to find."""
    return inspect.signature(made).parameters
