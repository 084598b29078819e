"""Seeded perturbations that any ranked test can run under: ``--pprank-perturb SEED``.

A new perturbation is a module here and a row in PERTURBATIONS; those of other plugins are
registered by the hook `pytest_pprank_register_faults`. The module has a class (see
`base.Perturbation`), of which each rank has an object for each test. What it does and when is drawn
from `dice.Dice`: from the seed, the test, the rank and the number of the event, never from time, so
that the same seed gives the same schedule. It changes when things happen, and how often SGLang must
try, but never what a test may assert: tokens equal the reference's, and nothing stays allocated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pytest_pprank.errors import UsageError
from pytest_pprank.protocol.schedule import Schedule
from pytest_pprank.registry import FaultRow, Registry, Row

PERTURBATIONS: tuple[FaultRow, ...] = (
    FaultRow(
        "skew",
        "delays a stage where an iteration of its event loop begins",
        "pytest_pprank.faults.skew:Skew",
    ),
    FaultRow(
        "messages",
        "delays a rank before it sends, receives or joins a collective",
        "pytest_pprank.faults.messages:Messages",
        sglang=False,
    ),
    FaultRow(
        "late_sends",
        "sends messages of isend later, after those of other channels",
        "pytest_pprank.faults.late_sends:LateSends",
        sglang=False,
        devices=("cpu", "sim"),
    ),
    FaultRow(
        "polls",
        "reports to a stage some iterations late that a KV transfer is ready or done",
        "pytest_pprank.faults.polls:Polls",
    ),
    FaultRow(
        "transfers",
        "delays KV transfers by some iterations, in the transfer engine's threads",
        "pytest_pprank.faults.transfers:Transfers",
    ),
    FaultRow(
        "metadata",
        "lets a request's metadata (its first token) arrive some iterations after its KV",
        "pytest_pprank.faults.transfers:Metadata",
    ),
    FaultRow(
        "kv_pressure",
        "lets KV run out, on all stages alike, so that a running request is retracted",
        "pytest_pprank.faults.kv_pressure:KvPressure",
    ),
    FaultRow(
        "aborts",
        "aborts requests in any state",
        "pytest_pprank.faults.aborts:Aborts",
        opt_in=True,
    ),
)
FAULTS = Registry(FaultRow, PERTURBATIONS)
"""All faults of this process that draw from a seed."""


def row_of(name: str) -> Row:
    """Return a perturbation's row by its name. Raises UsageError if it is not registered here."""
    return FAULTS.row_of(name)


def _schedule(seed: int, names: tuple[str, ...]) -> Schedule:
    # not chosen by name: all faults, or all that need no marker
    return Schedule(seed, names, by_name=names not in (FAULTS.names, FAULTS.default))


@dataclass(frozen=True)
class Allowed:
    """What a test's marker allows: names, and a seed for a test that is always perturbed."""

    names: tuple[str, ...] = field(default_factory=lambda: FAULTS.default)
    seed: int | None = None


def parse_option(text: str, where: str) -> Schedule | None:
    """Read ``SEED`` or ``SEED:NAMES``; return None for an empty text. Raises UsageError."""
    if not text:
        return None
    form = f"{where}: {text!r} is not SEED or SEED:NAMES, such as 7 or 7:skew,polls"
    if not text.strip()[:1].isdecimal():
        raise UsageError(f"{form}: SEED is a whole number from 0 up, and goes before the names")
    allowed = _parse(text, where, FAULTS.names)
    if allowed.seed is None or not allowed.names:
        raise UsageError(form)
    return _schedule(allowed.seed, allowed.names)


def parse_mark(value: object, where: str) -> Allowed:
    """Read a marker's ``perturb``. Raises UsageError.

    It is NAMES (``"none"``, ``"-polls"``, ``"+aborts"``, a list), or a seed or ``"SEED:NAMES"`` for
    a test that is perturbed in each run.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        return _parse(value, where, FAULTS.default)
    return Allowed(FAULTS.parse(value, where, FAULTS.names, FAULTS.names))


def _parse(text: str, where: str, default: tuple[str, ...]) -> Allowed:
    found = re.fullmatch(r"\s*(\d+)?\s*:?\s*(.*?)\s*", text)
    assert found is not None  # the pattern matches any text
    seed, names = found.groups()
    return Allowed(_names(names, where, default), None if seed is None else int(seed))


def _names(text: str, where: str, default: tuple[str, ...]) -> tuple[str, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    return FAULTS.parse(words, where, default, FAULTS.names) if words else default


def schedule_for(
    option: Schedule | None, mark: Allowed | None, device: str, *, sglang: bool
) -> Schedule | None:
    """Return what one test runs under; None if no perturbation is left.

    The command line's seed overrides that of a marker, and its names select among those that the
    marker allows.
    """
    allowed = mark or Allowed()
    seed = option.seed if option is not None else allowed.seed
    if seed is None:
        return None
    asked = option.names if option is not None else allowed.names
    both = (name for name in asked if name in allowed.names)
    names = FAULTS.chosen_for(both, device, sglang=sglang)
    return _schedule(seed, names) if names else None


__all__ = [
    "FAULTS",
    "PERTURBATIONS",
    "Allowed",
    "Schedule",
    "parse_mark",
    "parse_option",
    "row_of",
    "schedule_for",
]
