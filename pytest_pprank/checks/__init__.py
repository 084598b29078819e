"""Checks that run by themselves in every ranked test, as ASan does.

A new check is a module here and a row in SANITIZERS; those of other plugins are registered by the
hook `pytest_pprank_register_checks`. The module has a class (see `base.Sanitizer`), of which each
rank has an object for each test. It listens to hook points of SGLang and reports findings. If the
views of all ranks must agree, the row also names a function that the controller calls with each
rank's evidence (`Sanitizer.evidence`) after a test that has not failed otherwise.
"""

from __future__ import annotations

from collections.abc import Collection

from pytest_pprank.registry import CheckRow, Registry, Row

SANITIZERS: tuple[CheckRow, ...] = (
    CheckRow(
        "logs",
        "failures that SGLang logs and ignores: warnings of a failure, errors, tracebacks",
        "pytest_pprank.checks.logs:Logs",
    ),
    CheckRow(
        "p2p",
        "handles without a wait; messages and collectives that do not match those of other ranks",
        "pytest_pprank.checks.p2p:P2P",
        sglang=False,
        compare="pytest_pprank.checks.p2p_compare:compare",
    ),
    CheckRow(
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
    CheckRow(
        "forward",
        "batches that enter the model with a field missing, stale or inconsistent",
        "pytest_pprank.checks.forward:Forward",
        hooks=("prepare_for_extend", "init_new", "forward", "batch_result"),
    ),
    CheckRow(
        "consensus",
        "stages that run different batches, or apply something else than they have agreed on",
        "pytest_pprank.checks.consensus:Consensus",
        compare="pytest_pprank.checks.consensus_compare:compare",
        hooks=("init_new", "consensus_local", "consensus_bring", "consensus_apply", "handshake"),
    ),
    CheckRow(
        "experts",
        "a rank whose experts leave out tokens, or give something else than their weights make of "
        "them (expert parallelism)",
        "pytest_pprank.checks.experts:Experts",
        hooks=("experts",),
    ),
    CheckRow(
        "liveness",
        "requests that make no progress although there is room for them",
        "pytest_pprank.checks.liveness:Liveness",
        hooks=("init_new", "schedule"),
    ),
    CheckRow(
        "bookkeeping",
        "tables of SGLang that still name a request after it has ended, or its bootstrap room",
        "pytest_pprank.checks.bookkeeping:Bookkeeping",
    ),
    CheckRow(
        "h2d",
        "host tensors in place of device tensors, copies used before they arrive, staging buffers "
        "written while a copy may still read them",
        "pytest_pprank.checks.h2d:H2D",
        sglang=False,
        devices=("sim", "cuda"),
        hooks=("prepare_for_extend", "init_new", "forward"),
    ),
    CheckRow(
        "streams",
        "a read and a write of device memory that no stream, event or wait puts in order",
        "pytest_pprank.checks.streams:Streams",
        sglang=False,
        devices=("sim", "cuda"),
        asked_on=("cuda",),
        hooks=("transfer_queued", "transfer_read", "transfer_target"),
    ),
)
CHECKS = Registry(CheckRow, SANITIZERS)
"""All checks of this process."""


def row_of(name: str) -> Row:
    """Return a sanitizer's row by its name. Raises UsageError if it is not registered here."""
    return CHECKS.row_of(name)


def parse_names(value: object, where: str) -> tuple[str, ...]:
    """Read names of sanitizers. Raises UsageError, whose message begins with `where`."""
    return CHECKS.parse(value, where, CHECKS.default, CHECKS.default)


def chosen_for(
    chosen: tuple[str, ...], device: str, *, sglang: bool, asked: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the names in `chosen` that work on this device, in tests with SGLang or without.

    `asked`: the names that were given one by one, not by ``all``.
    """
    names = CHECKS.chosen_for(chosen, device, sglang=sglang)
    return tuple(name for name in names if name in asked or device not in row_of(name).asked_on)
