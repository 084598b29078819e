"""Checks that merging and filtering batches keeps each request's values with the request.

Most fields of a ScheduleBatch, of its sampling_info and of its penalizers have an entry per
request. Which ones is not listed here but found: tensors and lists as long as the batch. After a
batch is filtered or merged, each of them must be as long as the batch again, and have for each
request the entry that it had before. A request from a batch without that field must have the entry
that SGLang gives it in a batch made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import torch

from pytest_pprank.devices.host_reads import host_values
from pytest_pprank.rank.patches import patch
from pytest_pprank.sglang.compat.sampling import penalizers_of
from pytest_pprank.sglang.compat.seams import need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req, ScheduleBatch

_OF_ONE_FORWARD = (
    "decoding_reqs",
    "extend_input_logprob_token_ids",
    "extend_lens",
    "extend_logprob_start_lens",
    "global_num_tokens",  # of each DP rank
    "input_embeds",
    "input_ids",
    "mamba_",
    "mix_running_indices",
    "out_cache_loc",
    "prefill_input_ids_cpu",
    "prefix_lens",
    "replace_",
    "seq_lens_cpu_cache",
)
"""Beginnings of the names of fields that are made anew before each forward."""
_NOT_ROWS = ("sampling_mask_batch_indices", "sampling_support_logprobs_capture_indices")
"""Fields whose entries are numbers of rows."""
_OWN = ("reqs",)
_NEUTRAL: Mapping[str, object] = {"top_logprobs_nums": 0, "token_ids_logprobs": None}
"""Entries of requests whose batch did not have the field, for fields of the batch itself."""
_NEEDED: Mapping[str, Callable[[Req], object]] = {
    "top_logprobs_nums": lambda req: req.return_logprob,
    "token_ids_logprobs": lambda req: req.return_logprob,
}
"""Fields of the batch itself that may be None if no request in it needs them."""
_ANY: Mapping[str, Callable[[Req], object]] = {
    "return_logprob": lambda req: req.return_logprob,
    "has_grammar": lambda req: req.grammar,
    "return_hidden_states": lambda req: req.return_hidden_states,
}
"""Flags of the batch itself, which must be set if this is true of any request."""

_NOTHING = object()
"""The entry, zero or None, of a field that is there although no request of the batch needs it."""

Row = object
Rows = dict[str, dict[str, Row]]
"""By field, by request id: the entry."""


def rows_of(batch: ScheduleBatch) -> Rows:
    """Return a copy of all entries per request of a batch."""
    rids = [req.rid for req in batch.reqs]
    return {
        name: dict(zip(rids, _copies(value), strict=True))
        for name, value in _fields(batch)
        if rids and _length(value) == len(rids)
    }


def problems_after(batch: ScheduleBatch, *sources: Rows) -> list[str]:
    """Return what is wrong with a batch that was filtered, or merged from several `sources`."""
    rids = [req.rid for req in batch.reqs]
    if not rids:
        return []  # SGLang leaves the fields of an empty batch as they are
    twice = sorted({rid for rid in rids if rids.count(rid) > 1})
    problems = [f"{rid} is in the batch twice" for rid in twice]
    fresh = _Fresh(batch)
    for name in dict.fromkeys(name for source in sources for name in source):
        problems += _field_problems(batch, name, sources, fresh)
    return [*problems, *_flag_problems(batch, fresh)]


@contextmanager
def checked_rows() -> Iterator[list[str]]:
    """Check each merge and filter of batches in this process in the block; yield the problems."""
    batch_class = need(import_module("sglang.srt.managers.schedule_batch"), "ScheduleBatch")
    problems: list[str] = []
    undo = [
        patch(batch_class, name, _checking(need(batch_class, name), problems))
        for name in ("filter_batch", "merge_batch")
    ]
    try:
        yield problems
    finally:
        for each in undo:
            each()


def _checking(method: Callable[..., object], problems: list[str]) -> Callable[..., object]:
    def checked(batch: ScheduleBatch, *args: object, **kwargs: object) -> object:
        others = [other for other in args if type(other) is type(batch)]
        sources = [rows_of(each) for each in (batch, *others) if each.reqs]
        result = method(batch, *args, **kwargs)
        for problem in problems_after(batch, *sources):
            problems.append(f"{method.__name__}: {problem}")
        return result

    return checked


class _Fresh:
    """What SGLang would make for the requests of a batch from nothing; only if it is needed."""

    def __init__(self, batch: ScheduleBatch) -> None:
        self._batch = batch
        self._made: object = None
        self._rows: Rows = {}

    @property
    def info(self) -> object:
        """A new sampling_info."""
        if self._made is None:
            info = type(self._batch.sampling_info)
            self._made = info.from_schedule_batch(self._batch, self._batch.sampling_info.vocab_size)
            rids = [req.rid for req in self._batch.reqs]
            self._rows = {
                name: dict(zip(rids, _copies(value), strict=True))
                for name, value in _info_fields(self._made)
                if _length(value) == len(rids)
            }
        return self._made

    def row(self, name: str, rid: str) -> tuple[bool, Row]:
        """Return whether the field's entry is known for a request, and the entry."""
        if name in _NEUTRAL:
            return True, _NEUTRAL[name]
        if name.startswith("sampling_info."):
            _ = self.info
            return True, self._rows[name][rid] if name in self._rows else _NOTHING
        return False, None

    def has(self, name: str) -> bool:
        """Return whether the field is not None in a batch made anew."""
        if name in _NEEDED:
            return any(_NEEDED[name](req) for req in self._batch.reqs)
        if name.startswith("sampling_info."):
            _ = self.info
            return name in self._rows
        return True


def _field_problems(
    batch: ScheduleBatch, name: str, sources: Sequence[Rows], fresh: _Fresh
) -> Iterator[str]:
    now, length = dict(_fields(batch)).get(name), len(batch.reqs)
    if now is None:
        if not name.startswith(_OF_ONE_FORWARD) and fresh.has(name):
            yield f"{name} is None, and its requests need it"
        return
    if name.startswith(_OF_ONE_FORWARD):
        return
    if _length(now) != length:
        yield f"{name} has {_length(now)} entries for {length} requests"
        return
    for req, row in zip(batch.reqs, _copies(now), strict=True):
        of = [source[name][req.rid] for source in sources if req.rid in source.get(name, {})]
        known, wanted = (True, of[0]) if of else fresh.row(name, req.rid)
        if not known:
            yield f"{name} has an entry for {req.rid}, which came from a batch without it"
        elif not _same(row, wanted):
            yield f"{name} of {req.rid} is {_shown(row)}, and should be {_shown(wanted)}"


def _flag_problems(batch: ScheduleBatch, fresh: _Fresh) -> Iterator[str]:
    for name, needs in _ANY.items():
        rids = [req.rid for req in batch.reqs if needs(req)]
        if rids and not need(batch, name):
            yield f"{name} is not set, and {rids[0]} needs it"
    for name, now in vars(batch.sampling_info).items():
        if not isinstance(now, bool):
            continue
        anew = getattr(fresh.info, name)
        # a flag for all requests may be left unset, one for any request may stay set
        of_all = name.startswith("is_all") or name.endswith("eligible")
        if now != anew and (now if of_all else anew):
            yield f"sampling_info.{name} is {now}, and for these requests it must be {anew}"


def _fields(batch: ScheduleBatch) -> Iterator[tuple[str, object]]:
    """Yield name and value of each field that may have an entry per request."""
    yield from ((name, value) for name, value in vars(batch).items() if name not in _OWN)
    if batch.sampling_info is not None:
        yield from _info_fields(batch.sampling_info)


def _info_fields(info: object) -> Iterator[tuple[str, object]]:
    for name, value in vars(info).items():
        if name not in _NOT_ROWS:
            yield f"sampling_info.{name}", value
    for penalizer in penalizers_of(info):
        for name, value in vars(penalizer).items():
            yield f"sampling_info.{type(penalizer).__name__}.{name}", value


def _length(value: object) -> int | None:
    """Return the number of entries of a tensor or list; None for anything else."""
    if isinstance(value, torch.Tensor):
        return len(value) if value.dim() else None
    return len(value) if isinstance(value, list) else None


def _copies(value: object) -> Sequence[Row]:
    if isinstance(value, torch.Tensor):
        return list(host_values(value).detach().clone())
    assert isinstance(value, list)
    return [*value]


def _same(row: Row, wanted: Row) -> bool:
    if wanted is _NOTHING:
        return row is None or (isinstance(row, torch.Tensor) and not bool(row.any()))
    if isinstance(row, torch.Tensor) and isinstance(wanted, torch.Tensor):
        return bool(row.shape == wanted.shape and torch.equal(row, wanted.to(row.dtype)))
    return row is wanted or bool(row == wanted)


def _shown(row: Row) -> str:
    if not isinstance(row, torch.Tensor):
        return "nothing" if row is _NOTHING else repr(row)
    flat = row.flatten()
    odd = flat.nonzero().flatten()[:3].tolist() if len(flat) > 8 else range(len(flat))
    return ", ".join(f"[{index}]={flat[index].item():g}" for index in odd) or "all zeros"
