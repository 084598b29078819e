"""The markers ``pprank`` and ``sglang``: declared, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import pytest

from pytest_pprank.checks import parse_names
from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.faults import Allowed, parse_mark
from pytest_pprank.names import asked_by_name
from pytest_pprank.options import DEVICES, WITHIN_STAGE, parse_sizes

DECLARATIONS = (
    "pprank(pp=N, prefill=N, decode=M, tp=N, dp=N, ep=N, device=NAME, fresh=BOOL, timeout=S, "
    "sanitize=NAMES, perturb=NAMES, known_bug=ID): run this test on every rank of a worker group "
    "of N pipeline stages (overrides --pp-size; a tuple runs it at each size), or of N prefill and "
    "M decode stages (a list of numbers: several instances), each of tp ranks that share requests "
    "in dp and experts in ep groups, on the device auto, cpu, sim or cuda, in a group of its own "
    "if fresh, for at most S seconds, watched by these sanitizers, and under these perturbations "
    "if --pprank-perturb is given (each 'all', 'none' or a list of names), expected to fail, "
    "strictly, with releases of SGLang that have this bug (an id, or a tuple of ids, of "
    "`python -m pytest_pprank known-bugs`)",
    "sglang(**server_args): run this test in a worker group whose SGLang has these server args "
    "(fields of sglang.srt.server_args.ServerArgs) on top of the defaults; prefill={...} and "
    "decode={...} are for one role of a prefill/decode group",
)


class Stages(NamedTuple):
    """Pipeline stages of one role, each of `tp` ranks (0: as ``tp=`` or ``--tp-size`` says).

    `dp`, `ep`: in the same way; 1 if `tp` is given.
    """

    pp: int
    tp: int = 0
    dp: int = 0
    ep: int = 0


Instances = tuple[Stages, ...]
"""The instances of one role: most often a single one."""


@dataclass(frozen=True)
class RankMark:
    """The merged ``pprank`` markers of a test; None where no marker gives a value.

    The table in docs/options.md is generated from the docstrings of the fields.
    """

    pp: tuple[int, ...] | None = None
    """pipeline stages, whatever ``--pp-size`` says; a tuple runs the test at each size"""
    prefill: tuple[Instances, ...] | None = None
    """pipeline stages of prefill, together with ``decode``; ``{"pp": 2, "tp": 1}`` for a number of
    ranks of each stage that decode need not have, also with ``"dp"`` and ``"ep"``; a list
    (``[2, 2]``) for several instances
    """
    decode: tuple[Instances, ...] | None = None
    """pipeline stages of decode, together with ``prefill``; as there"""
    tp: tuple[int, ...] | None = None
    """ranks of each stage (tensor parallelism), whatever ``--tp-size`` says; as for ``pp``; without
    ``dp`` and ``ep`` these are 1
    """
    dp: tuple[int, ...] | None = None
    """DP ranks of each stage (DP attention), whatever ``--dp-size`` says; as for ``pp``"""
    ep: tuple[int, ...] | None = None
    """EP ranks of each stage (expert parallelism), whatever ``--ep-size`` says; as for ``pp``"""
    device: str | None = None
    """device of the ranks: auto, cpu, sim or cuda"""
    fresh: bool = False
    """whether the test gets a worker group that no other test has used"""
    timeout: float | None = None
    """seconds that the test may take"""
    sanitize: tuple[str, ...] | None = None
    """sanitizers that watch the test: all, none, names, or ``-NAME`` for all but that one"""
    perturb: Allowed | None = None
    """perturbations that the test allows: all, none, names, ``-NAME`` or ``+NAME``; with a seed in
    front (``"7:polls"``), those that it runs under in each run
    """
    known_bug: tuple[str, ...] = ()
    """id of a known bug of SGLang, or a tuple of ids: with releases that have it, the test is
    expected to fail, strictly
    """


def read_rank_mark(node: pytest.Item | pytest.Collector) -> RankMark:
    """Merge the ``pprank`` markers of a test, the closest winning; raises UsageError."""
    merged: dict[str, object] = {}
    for mark in reversed(list(node.iter_markers("pprank"))):
        if mark.args:
            raise UsageError(
                f"@pytest.mark.pprank takes keywords only, got {mark.args[0]!r}: "
                f"write pp={mark.args[0]!r}"
            )
        merged.update(mark.kwargs)
    allowed = [field.name for field in fields(RankMark)]
    for name in merged:
        if name not in allowed:
            raise UsageError(
                f"@pytest.mark.pprank has no keyword {name!r}{did_you_mean(name, allowed)}; "
                f"allowed: {', '.join(allowed)}"
            )
    checked: dict[str, Any] = {name: _CHECKS[name](value) for name, value in merged.items()}
    _check_roles(merged)
    return RankMark(**checked)


def _check_roles(merged: Mapping[str, object]) -> None:
    roles = [name for name in ("prefill", "decode") if name in merged]
    shown = ", ".join(
        f"{name}={merged[name]!r}" for name in ("pp", "prefill", "decode") if name in merged
    )
    if roles and "pp" in merged:
        raise UsageError(
            f"@pytest.mark.pprank({shown}): a test runs on pp=N stages that do both, or on "
            "prefill=N and decode=M stages, not on all three"
        )
    if len(roles) == 1:
        other = "decode" if roles == ["prefill"] else "prefill"
        raise UsageError(
            f"@pytest.mark.pprank({shown}): {roles[0]} needs {other}, too: "
            f"@pytest.mark.pprank(prefill=N, decode=M)"
        )


def sanitizers_asked(node: pytest.Item | pytest.Collector) -> frozenset[str] | None:
    """Return the sanitizers that a test's markers request by name; None if no marker has a list."""
    for mark in node.iter_markers("pprank"):
        if "sanitize" in mark.kwargs:
            return asked_by_name(mark.kwargs["sanitize"])
    return None


def read_server_args(node: pytest.Item | pytest.Collector) -> Mapping[str, object]:
    """Merge the ``sglang`` markers of a test, the closest winning; raises UsageError."""
    merged: dict[str, object] = {}
    for mark in reversed(list(node.iter_markers("sglang"))):
        if mark.args:
            raise UsageError(
                f"@pytest.mark.sglang takes SGLang server args by keyword, got {mark.args[0]!r}"
            )
        merged.update(mark.kwargs)
    return merged


def _sizes(name: str, value: object) -> tuple[int, ...]:
    shown = f"@pytest.mark.pprank({name}={value!r})"
    values = value if isinstance(value, (tuple, list)) else (value,)
    if any(isinstance(v, bool) for v in values) or not values:
        raise UsageError(f"{shown}: a whole number from 1 up, or a tuple")
    return parse_sizes(",".join(str(v) for v in values), shown)


def _instances(name: str, value: object) -> tuple[Instances, ...]:
    """Read the sizes of a role: those of one instance, a list of them, or a tuple of either."""
    shown = f"@pytest.mark.pprank({name}={value!r})"
    found: list[Instances] = []
    for one in value if isinstance(value, tuple) and value else (value,):
        each = one if isinstance(one, list) and one else [one]
        found.append(tuple(_stages(name, instance, shown) for instance in each))
    return tuple(dict.fromkeys(found))


def _stages(name: str, value: object, shown: str) -> Stages:
    """Read the sizes of one instance: a number of stages, or a dict of the sizes of `Stages`."""
    if isinstance(value, (tuple, list)) or (
        isinstance(value, Mapping) and ("pp" not in value or not {*value} <= {*Stages._fields})
    ):
        raise UsageError(
            f'{shown}: a number of stages, or a dict with "pp" and, for the ranks of each stage, '
            '"tp", "dp" and "ep"; a list of these for several instances, a tuple to run at each '
            "size"
        )
    if isinstance(value, Mapping):
        for key in value:
            _sizes(f"{name}[{key!r}]", value[key])
        return Stages(**value)
    return Stages(*_sizes(name, value))


def _device(value: object) -> str:
    if value not in DEVICES:
        raise UsageError(f"@pytest.mark.pprank(device={value!r}): allowed are {', '.join(DEVICES)}")
    return str(value)


def _fresh(value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"@pytest.mark.pprank(fresh={value!r}): allowed are True and False")
    return value


def _timeout(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UsageError(f"@pytest.mark.pprank(timeout={value!r}): a number of seconds above 0")
    return float(value)


def _sanitize(value: object) -> tuple[str, ...]:
    return parse_names(value, f"@pytest.mark.pprank(sanitize={value!r})")


def _perturb(value: object) -> Allowed:
    return parse_mark(value, f"@pytest.mark.pprank(perturb={value!r})")


def _known_bug(value: object) -> tuple[str, ...]:
    from pytest_pprank.known.bugs import bugs_named

    shown = f"@pytest.mark.pprank(known_bug={value!r})"
    ids = (value,) if isinstance(value, str) else value
    if not isinstance(ids, tuple) or not all(isinstance(each, str) for each in ids):
        raise UsageError(f"{shown}: an id, or a tuple of ids")
    try:
        return tuple(bug.id for bug in bugs_named(ids))
    except UsageError as error:
        raise UsageError(f"{shown}: {error}") from error


_CHECKS: dict[str, Callable[[object], object]] = {
    "pp": partial(_sizes, "pp"),
    "prefill": partial(_instances, "prefill"),
    "decode": partial(_instances, "decode"),
    **{name: partial(_sizes, name) for name in WITHIN_STAGE},
    "device": _device,
    "fresh": _fresh,
    "timeout": _timeout,
    "sanitize": _sanitize,
    "perturb": _perturb,
    "known_bug": _known_bug,
}
