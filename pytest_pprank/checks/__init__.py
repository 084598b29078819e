"""Checks that run by themselves under every ranked test, as ASan does.

A new one is a module here and a row in SANITIZERS. The module has a class (see `base.Sanitizer`)
that lives on each rank for one test: it listens at SGLang's seams and reports findings. Where the
views of all ranks must fit together, the row also names a function that the controller calls with
what each rank has brought (`Sanitizer.evidence`) after a test that has not failed otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_pprank import names


@dataclass(frozen=True)
class Row:
    """A sanitizer as the controller knows it.

    `place`: module and class, imported on ranks. `sglang`: whether it needs SGLang there.
    `compare`: module and function of the controller's part, which gets the evidence by rank (None
    from a rank without) and yields findings. `devices`: kinds that it works on, empty for all.
    `hooks`: the hook points (sglang.events.places) that it listens to; it is off without one of
    them.
    """

    name: str
    about: str
    place: str
    sglang: bool = True
    compare: str = ""
    devices: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()


SANITIZERS: tuple[Row, ...] = (
    Row(
        "logs",
        "failures that SGLang logs and ignores: warnings of a failure, errors, tracebacks",
        "pytest_pprank.checks.logs:Logs",
    ),
    Row(
        "p2p",
        "handles without a wait; messages and collectives that do not match those of other ranks",
        "pytest_pprank.checks.p2p:P2P",
        sglang=False,
        compare="pytest_pprank.checks.p2p_compare:compare",
    ),
    Row(
        "kv",
        "KV, request slots and locks that are not freed, freed twice, or used after that",
        "pytest_pprank.checks.kv:Kv",
        hooks=(
            "kv_alloc",
            "kv_free",
            "kv_clear",
            "slot_alloc",
            "slot_free",
            "metadata_alloc",
            "metadata_free",
            "prepare_for_extend",
            "prepare_for_decode",
            "lock",
            "unlock",
            "init_new",
            "forward",
            "transfer_send",
        ),
    ),
    Row(
        "forward",
        "batches that enter the model with a field missing, stale or inconsistent",
        "pytest_pprank.checks.forward:Forward",
        hooks=("prepare_for_extend", "init_new", "forward", "batch_result"),
    ),
    Row(
        "consensus",
        "stages that run different batches, or apply something else than they have agreed on",
        "pytest_pprank.checks.consensus:Consensus",
        compare="pytest_pprank.checks.consensus_compare:compare",
        hooks=("init_new", "consensus_local", "consensus_bring", "consensus_apply", "handshake"),
    ),
    Row(
        "liveness",
        "requests that make no progress although there is room for them",
        "pytest_pprank.checks.liveness:Liveness",
        hooks=("init_new", "schedule"),
    ),
    Row(
        "h2d",
        "host tensors in place of device tensors, copies used before they arrive, staging buffers "
        "written while a copy may still read them",
        "pytest_pprank.checks.h2d:H2D",
        sglang=False,
        devices=("sim", "cuda"),
        hooks=("prepare_for_extend", "init_new", "forward"),
    ),
    Row(
        "streams",
        "a read and a write of device memory that no stream, event or wait puts in order",
        "pytest_pprank.checks.streams:Streams",
        sglang=False,
        devices=("sim",),
        hooks=("transfer_queued", "transfer_read", "transfer_target"),
    ),
)
_BY_NAME = {row.name: row for row in SANITIZERS}


def row_of(name: str) -> Row:
    """Return a sanitizer by its name."""
    return _BY_NAME[name]


def parse_names(value: object, where: str) -> tuple[str, ...]:
    """Read names of sanitizers; raises UsageError, which begins with `where` (see names)."""
    return names.parse_names(value, where, "sanitizer", tuple(_BY_NAME))


def chosen_for(chosen: tuple[str, ...], device: str, *, sglang: bool) -> tuple[str, ...]:
    """Return those of `chosen` that can work on this kind of device, and without SGLang or with."""
    rows = [_BY_NAME[name] for name in chosen]
    return tuple(
        row.name
        for row in rows
        if (sglang or not row.sglang) and (not row.devices or device in row.devices)
    )
