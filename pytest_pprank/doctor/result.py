"""What a check of the doctor says, and what such a check is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class State(str, Enum):
    """What a check has found. LIMITED: something is missing or off, and other things work."""

    OK = "ok"
    LIMITED = "limited"
    BROKEN = "broken"


class Use(str, Enum):
    """What a user may want to run on this machine."""

    CPU = "cpu"
    SIM = "sim"
    CUDA = "cuda"
    SGLANG = "sglang"
    DISAGG = "disagg"


EVERYTHING = tuple(Use)
WITH_SGLANG = (Use.SGLANG, Use.DISAGG)


@dataclass(frozen=True)
class Result:
    """`cure`: the command that mends it, or "". `stops`: what cannot run because of it.

    A broken result without `stops` stops what its check was registered with.
    """

    state: State
    text: str
    cure: str = ""
    stops: tuple[Use, ...] = ()


def ok(text: str) -> Result:
    """Return that all is well."""
    return Result(State.OK, text)


def limited(text: str, cure: str = "", *, stops: tuple[Use, ...] = ()) -> Result:
    """Return that only `stops` cannot run, or that things run worse than elsewhere."""
    return Result(State.LIMITED, text, cure, stops)


def broken(text: str, cure: str = "") -> Result:
    """Return that what depends on this check cannot run."""
    return Result(State.BROKEN, text, cure)


@dataclass(frozen=True)
class Check:
    """`stops`: what cannot run if it is broken. `seconds`: its deadline."""

    name: str
    look: Callable[[], Result]
    stops: tuple[Use, ...] = ()
    seconds: float = 20.0
