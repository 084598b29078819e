"""Checks a batch against its table: fields missing, on the wrong device, stale or still staged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_pprank.devices.host_reads import host_values
from pytest_pprank.devices.pending import unordered_writes
from pytest_pprank.sglang.batches.cleared import cleared_by
from pytest_pprank.sglang.batches.fields import (
    ALWAYS,
    EXTEND,
    FORWARD_BATCH,
    SCHEDULE_BATCH,
    Device,
    Host,
    Kind,
    Mirror,
    Staging,
    Table,
)
from pytest_pprank.sglang.compat.batches import is_plain_extend, mode_of, tensors_of_proxy

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import ForwardBatch, PPProxyTensors, ScheduleBatch

_NOTE = "_pprank_note"
_UNORDERED = (
    "the reading stream does not wait for the stream of the copy (wait_stream, or wait_event with "
    "an event recorded after it)"
)


@dataclass(frozen=True)
class BadField:
    """One field that is not as it must be."""

    object: str
    field: str
    found: str
    expected: str
    cause: str = ""
    cleared_by: str = ""
    """Which code set the field to None, if that was seen."""

    def __str__(self) -> str:
        lines = [f"{self.object}.{self.field}: found {self.found}; expected {self.expected}"]
        if self.cleared_by:
            lines.append(f"set to None by {self.cleared_by}")
        if self.cause:
            lines.append(f"usual cause: {self.cause}")
        return "\n  ".join(lines)


@dataclass
class Note:
    """What was recorded of a batch earlier: its staged copies, and the batch it was made from."""

    staged: dict[str, torch.Tensor]
    locations: object = None
    origin: object = None


def note_staging(batch: ScheduleBatch) -> None:
    """Record what a ScheduleBatch has staged now, to compare it with the field filled from it."""
    staged = {
        name: value.clone()
        for name, kind in SCHEDULE_BATCH.items()
        if isinstance(kind, Staging)
        and kind.same_contents
        and isinstance(value := getattr(batch, name, None), torch.Tensor)
    }
    if staged:
        setattr(batch, _NOTE, Note(staged, locations=batch.out_cache_loc))


def note_origin(forward_batch: ForwardBatch, schedule_batch: ScheduleBatch) -> None:
    """Record from which ScheduleBatch a ForwardBatch was made."""
    setattr(forward_batch, _NOTE, Note({}, origin=schedule_batch))


def table_of(obj: object) -> Table | None:
    """Return the table for a ScheduleBatch or a ForwardBatch; None for anything else."""
    names = {cls.__name__ for cls in type(obj).__mro__ if cls.__module__.startswith("sglang.")}
    if "ScheduleBatch" in names:
        return SCHEDULE_BATCH
    return FORWARD_BATCH if "ForwardBatch" in names else None


def check_batch(
    batch: object, table: Table, device: torch.device, fields: Iterable[str] | None = None
) -> list[BadField]:
    """Return what is wrong with `batch` at a forward's entry; `fields`: check only these."""
    wanted = None if fields is None else frozenset(fields)
    findings = list(_unknown(batch, table)) if wanted is None else []
    for name in table:
        if wanted is None or name in wanted:
            findings.extend(_check_field(batch, name, table, device))
    return sorted(findings, key=lambda found: not _is_always(table.get(found.field)))


def tensors_of(batch: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of all tensors in a batch's fields."""
    for name, value in vars(batch).items():
        if name != _NOTE:
            yield from ((f"{type(batch).__name__}.{name}", one) for one in _tensors(value))


def host_tensors(batch: object, proxy: PPProxyTensors | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of tensors that a forward reads on its device but gets on the host.

    `batch`: a ForwardBatch; `proxy`: the previous stage's PPProxyTensors, None on the first stage.
    """
    for name, kind in FORWARD_BATCH.items():
        if isinstance(kind, Device):
            for tensor in _tensors(getattr(batch, name, None)):
                if tensor.device.type == "cpu":
                    yield f"{type(batch).__name__}.{name}", tensor
    for key, tensor in tensors_of_proxy(proxy).items():
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
            yield f"{type(proxy).__name__}[{key!r}]", tensor


def check_staging(batch: object) -> list[BadField]:
    """Return the fields that a ScheduleBatch has staged and not consumed."""
    findings = []
    for name, kind in SCHEDULE_BATCH.items():
        value = getattr(batch, name, None)
        if isinstance(kind, Staging) and value is not None:
            findings.append(
                BadField(
                    type(batch).__name__,
                    name,
                    f"a staged copy still present ({describe(value)})",
                    f"None: {kind.by} consumes it into {kind.into} and clears it",
                    _cause(SCHEDULE_BATCH, kind.into),
                )
            )
    return findings


def describe(value: object) -> str:
    """Describe a value: dtype, shape and device of a tensor, "None", else its type."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        place = "host tensor" if value.device.type == "cpu" else f"tensor on {value.device}"
        pinned = " pinned" if place == "host tensor" and _pinned(value) else ""
        return f"a{pinned} {place} {dtype}{list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def bad_tensor(
    value: object, name: str, owner: str, device: torch.device, cause: str = ""
) -> BadField | None:
    """Return what is wrong with a tensor that must be on `device`; None if it is all right."""
    expected = f"a tensor on {device}"
    if not isinstance(value, torch.Tensor):
        return BadField(owner, name, describe(value), expected, cause)
    if not _same_device(value.device, device):
        return BadField(owner, name, describe(value), expected, cause)
    late = unordered_writes(value)
    if late:
        found = f"{describe(value)} that is not there for the current stream: {late[0]}"
        return BadField(owner, name, found, expected, _UNORDERED)
    return None


def _check_field(
    batch: object, name: str, table: Table, device: torch.device
) -> Iterator[BadField]:
    kind, value = table[name], getattr(batch, name, None)
    owner = type(batch).__name__
    if isinstance(kind, Device):
        if value is None and not _required(batch, kind):
            return
        for tensor in _tensors(value) or [value]:
            finding = bad_tensor(tensor, name, owner, device, _usual_cause(batch, kind))
            if finding is not None:
                yield _with_clearing(_with_staging(finding, batch), batch)
            elif isinstance(tensor, torch.Tensor):
                yield from _contents(batch, name, tensor)
    elif isinstance(kind, Mirror) and value is not None:
        yield from _check_mirror(batch, name, kind.of, value)
    elif isinstance(kind, Host):
        for tensor in _tensors(value):
            if tensor.device.type != "cpu":
                yield BadField(owner, name, describe(tensor), "a host tensor")


def _usual_cause(batch: object, kind: Device) -> str:
    mode = mode_of(batch)
    decode = mode is not None and mode.is_decode()
    return (kind.decode_cause if decode else "") or kind.cause


def _required(batch: object, kind: Device) -> bool:
    mode = mode_of(batch)
    extend = mode is not None and is_plain_extend(mode)
    return kind.when == ALWAYS or (kind.when == EXTEND and extend)


def _check_mirror(batch: object, name: str, of: str, value: object) -> Iterator[BadField]:
    owner, device_value = type(batch).__name__, getattr(batch, of, None)
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
        yield BadField(owner, name, describe(value), f"a host mirror of {of}")
    elif isinstance(device_value, torch.Tensor):
        actual = host_values(device_value)
        if value.shape != actual.shape or not torch.equal(value.to(actual.dtype), actual):
            yield BadField(
                owner,
                name,
                _values(value),
                f"the contents of {of}, {_values(actual)}",
                f"an update of {of} that forgets its host mirror",
            )


def _contents(batch: object, name: str, tensor: torch.Tensor) -> Iterator[BadField]:
    """Compare a materialised field with the copy that was staged for it, if that was recorded."""
    schedule_batch = origin_of(batch)
    note = getattr(schedule_batch, _NOTE, None)
    # A later prepare_for_* allocates new KV locations: then the note is for an earlier forward.
    if note is None or note.locations is not schedule_batch.out_cache_loc:
        return
    for source, staged in note.staged.items():
        kind = SCHEDULE_BATCH[source]
        if not isinstance(kind, Staging) or kind.into != name:
            continue
        actual = host_values(tensor)[: len(staged)]
        if actual.shape != staged.shape or not torch.equal(actual.to(staged.dtype), staged):
            yield BadField(
                type(batch).__name__,
                name,
                _values(host_values(tensor)),
                f"what was staged in {source}, {_values(staged)}",
                "a staging buffer rewritten before its copy was read, or a stale copy",
            )


def _with_staging(finding: BadField, batch: object) -> BadField:
    """Add to a finding which staged copy was never moved into the field."""
    schedule_batch = origin_of(batch)
    for name, kind in SCHEDULE_BATCH.items():
        value = getattr(schedule_batch, name, None)
        if isinstance(kind, Staging) and kind.into == finding.field and value is not None:
            found = f"{finding.found}, while ScheduleBatch.{name} still holds {describe(value)}"
            return replace(finding, found=found)
    return finding


def _with_clearing(finding: BadField, batch: object) -> BadField:
    """Add to a finding which code emptied the field, here or in the original ScheduleBatch."""
    if getattr(batch, finding.field, None) is not None:
        return finding
    seen = (cleared_by(each, finding.field) for each in (batch, origin_of(batch)))
    return replace(finding, cleared_by=next(filter(None, seen), ""))


def origin_of(batch: object) -> Any:
    """Return the ScheduleBatch that a ForwardBatch was made of if recorded, else the argument."""
    note = getattr(batch, _NOTE, None)
    return note.origin if note is not None and note.origin is not None else batch


def _unknown(batch: object, table: Table) -> Iterator[BadField]:
    for name, value in vars(batch).items():
        if name not in table and name != _NOTE and _tensors(value):
            yield BadField(
                type(batch).__name__,
                name,
                describe(value),
                "no tensor: the table in sglang/batches/fields.py does not know this field",
            )


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [item for item in value if isinstance(item, torch.Tensor)]
    return []


def _cause(table: Table, name: str) -> str:
    kind = table.get(name)
    return kind.cause if isinstance(kind, Device) else ""


def _is_always(kind: Kind | None) -> bool:
    return isinstance(kind, Device) and kind.when == ALWAYS


def _same_device(actual: torch.device, expected: torch.device) -> bool:
    return actual.type == expected.type and (
        expected.index is None or actual.index is None or actual.index == expected.index
    )


def _pinned(value: torch.Tensor) -> bool:
    # is_pinned initialises the accelerator's runtime: only call it if one is in use already.
    in_use = torch.cuda.is_initialized() or hasattr(torch, "sim")
    return bool(in_use and value.is_pinned())


def _values(tensor: torch.Tensor) -> str:
    flat = tensor.flatten().tolist()
    shown = ", ".join(map(str, flat[:8]))
    return f"[{shown}{', ...' if len(flat) > 8 else ''}] ({len(flat)} values)"
