"""Seeded perturbation that any ranked test can run under: ``--pprank-perturb SEED``.

A new one is a module here and a row in PERTURBATIONS. The module has a class (see
`base.Perturbation`) that lives on each rank for one test. What it does and when is drawn from
`dice.Dice`: from the seed, the test, the rank and the number of the event, never from time, so that
the same seed gives the same schedule. It changes when things happen, and how often SGLang must try,
but never what a test may assert: tokens are those of the reference, and nothing is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_pprank.errors import UsageError
from pytest_pprank.names import NONE, parse_names
from pytest_pprank.protocol.schedule import Schedule


@dataclass(frozen=True)
class Row:
    """A perturbation as the controller knows it.

    `place`: module and class, imported on ranks. `sglang`: whether it needs SGLang there. `opt_in`:
    only for tests whose marker names it, because others would rightly fail. `devices`: kinds that
    it works on, empty for all.
    """

    name: str
    about: str
    place: str
    sglang: bool = True
    opt_in: bool = False
    devices: tuple[str, ...] = ()


PERTURBATIONS: tuple[Row, ...] = (
    Row(
        "skew",
        "delays a stage where an iteration of its event loop begins",
        "pytest_pprank.faults.skew:Skew",
    ),
    Row(
        "messages",
        "delays a rank before it sends, receives or joins a collective",
        "pytest_pprank.faults.messages:Messages",
        sglang=False,
    ),
    Row(
        "late_sends",
        "sends messages of isend later, after those of other channels",
        "pytest_pprank.faults.late_sends:LateSends",
        sglang=False,
        devices=("cpu", "sim"),
    ),
    Row(
        "polls",
        "reports to a stage some iterations late that a KV transfer is ready or done",
        "pytest_pprank.faults.polls:Polls",
    ),
    Row(
        "transfers",
        "delays KV transfers by some iterations, in the transfer engine's threads",
        "pytest_pprank.faults.transfers:Transfers",
    ),
    Row(
        "metadata",
        "lets a request's metadata (its first token) arrive some iterations after its KV",
        "pytest_pprank.faults.transfers:Metadata",
    ),
    Row(
        "kv_pressure",
        "lets KV run out, on all stages alike, so that a running request is retracted",
        "pytest_pprank.faults.kv_pressure:KvPressure",
    ),
    Row(
        "aborts",
        "aborts requests in any state",
        "pytest_pprank.faults.aborts:Aborts",
        opt_in=True,
    ),
)
_BY_NAME = {row.name: row for row in PERTURBATIONS}
_DEFAULT = tuple(row.name for row in PERTURBATIONS if not row.opt_in)


def row_of(name: str) -> Row:
    """Return a perturbation by its name."""
    return _BY_NAME[name]


def _schedule(seed: int, names: tuple[str, ...]) -> Schedule:
    # what is left of all for a test without a marker, or with all of them allowed
    return Schedule(seed, names, by_name=names not in (tuple(_BY_NAME), _DEFAULT))


@dataclass(frozen=True)
class Allowed:
    """What a test's marker says: names; and the seed of a test that is always perturbed."""

    names: tuple[str, ...] = _DEFAULT
    seed: int | None = None


def parse_option(text: str, where: str) -> Schedule | None:
    """Read ``SEED`` or ``SEED:NAMES``; None for an empty text. Raises UsageError."""
    if not text:
        return None
    form = f"{where}: {text!r} is not SEED or SEED:NAMES, such as 7 or 7:skew,polls"
    if not text.strip()[:1].isdecimal():
        raise UsageError(f"{form}: SEED is a whole number from 0 up, and goes before the names")
    allowed = _parse(text, where, tuple(_BY_NAME))
    if allowed.seed is None or not allowed.names:
        raise UsageError(form)
    return _schedule(allowed.seed, allowed.names)


def parse_mark(value: object, where: str) -> Allowed:
    """Read a marker's ``perturb``: NAMES (``"none"``, ``"-polls"``, ``"+aborts"``, a list), or a
    seed or ``"SEED:NAMES"`` for a test that is perturbed in each run. Raises UsageError.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        return _parse(value, where, _DEFAULT)
    return Allowed(parse_names(value, where, "perturbation", tuple(_BY_NAME)))


def _parse(text: str, where: str, default: tuple[str, ...]) -> Allowed:
    found = re.fullmatch(r"\s*(\d+)?\s*:?\s*(.*?)\s*", text)
    assert found is not None  # it takes anything
    seed, names = found.groups()
    return Allowed(_names(names, where, default), None if seed is None else int(seed))


def _names(text: str, where: str, default: tuple[str, ...]) -> tuple[str, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    added = [word[1:] for word in words if word.startswith("+")]
    rest = [word for word in words if not word.startswith("+")]
    known = tuple(_BY_NAME)
    chosen = parse_names(rest, where, "perturbation", known) if rest else default
    if rest and all(word.startswith("-") for word in rest):
        chosen = tuple(name for name in chosen if name in default)
    more = parse_names(added, where, "perturbation", known)
    return tuple(name for name in known if name in chosen or name in more)


def schedule_for(
    option: Schedule | None, mark: Allowed | None, device: str, *, sglang: bool
) -> Schedule | None:
    """Return what one test runs under; None where nothing is left of it.

    The command line's seed goes before that of a marker, and its names choose among those that the
    marker allows.
    """
    allowed = mark or Allowed()
    seed = option.seed if option is not None else allowed.seed
    if seed is None:
        return None
    asked = option.names if option is not None else allowed.names
    rows = [_BY_NAME[name] for name in asked if name in allowed.names]
    names = tuple(
        row.name
        for row in rows
        if (sglang or not row.sglang) and (not row.devices or device in row.devices)
    )
    return _schedule(seed, names) if names else None


__all__ = [
    "NONE",
    "PERTURBATIONS",
    "Allowed",
    "Row",
    "Schedule",
    "parse_mark",
    "parse_option",
    "row_of",
    "schedule_for",
]
