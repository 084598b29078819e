"""What enters the model is complete, and consistent with the requests and the host's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.sglang.events.sites import call_sites
from pytest_pprank.sglang.events.types import (
    BatchResult,
    ForwardContents,
    ForwardEntry,
    LastToken,
    Origin,
    Quiescent,
)

_CURE = (
    "look where the batch was prepared, filtered or merged last; the line above entered the model"
)


class Forward(Sanitizer):
    """Checks each ForwardBatch where it enters the model; contents only where reading is free."""

    name: ClassVar[str] = "forward"

    def begin(self) -> None:
        self._in_flight: dict[str, str] = {}
        self.watch.listen("forward", self._forward)
        self.watch.listen("batch_result", self._result)

    def _forward(self, event: ForwardEntry) -> None:
        if not (event.extend or event.decode):
            return
        problems = list(event.problems)
        if not problems and event.origin is not None:
            problems += _problems(event, event.origin)
            problems += self._twice(event, event.origin)
        for problem in problems:
            self.watch.report(f"a {event.mode} enters the model: {problem}", call_sites(), _CURE)

    def _twice(self, event: ForwardEntry, origin: Origin) -> Iterator[str]:
        """Yield requests in a second microbatch before the result of the first is processed."""
        if origin.overlap or event.iteration is None:
            return  # SGLang does not process the result of a test's own forward
        for rid in origin.rids:
            if origin.decode and rid in self._in_flight:
                earlier = self._in_flight[rid]
                yield f"{rid} is in another microbatch, whose result is awaited: {earlier}"
            self._in_flight[rid] = origin.mode

    def _result(self, event: BatchResult) -> None:
        for rid in event.rids:
            self._in_flight.pop(rid, None)

    def quiescent(self, left: Quiescent) -> None:  # noqa: ARG002
        self._in_flight.clear()


def _problems(event: ForwardEntry, origin: Origin) -> Iterator[str]:
    """Yield inconsistencies between a ForwardBatch and the ScheduleBatch it was made from."""
    rids = origin.rids
    if len(set(rids)) < len(rids):
        yield f"a request is in the batch twice: {', '.join(rids)}"
    for name in ("input_ids", "positions", "out_cache_loc"):
        count = event.sizes.get(name, 0)
        if count != sum(origin.lengths):
            yield f"{name} has {count} entries, the requests' lengths are {list(origin.lengths)}"
            return
    for name in ("seq_lens", "req_pool_indices"):
        count = event.sizes.get(name, 0)
        if count != len(rids):
            yield f"{name} has {count} entries for {len(rids)} requests"
            return
    if event.contents is not None:
        yield from _contents(event.contents, origin)


def _contents(found: ForwardContents, origin: Origin) -> Iterator[str]:
    start = 0
    for place, (rid, length) in enumerate(zip(origin.rids, origin.lengths, strict=True)):
        end, whole = start + length, found.seq_lens[place]
        if origin.last and found.input_ids is not None:
            yield from _decoded(rid, found.input_ids[place], whole, origin.last[place])
        wanted = list(range(whole - length, whole))
        positions = None if found.positions is None else list(found.positions[start:end])
        if positions is not None and positions != wanted:
            yield f"positions of {rid} are {_some(positions)}, not {_some(wanted)}"
        kept = list(found.rows[place][whole - length : whole])
        taken = list(found.written[start:end])
        if taken != kept:
            yield (
                f"out_cache_loc of {rid} is {_some(taken)}, its row of req_to_token has "
                f"{_some(kept)}"
            )
        start = end


def _decoded(rid: str, token: int, seq_len: int, known: LastToken) -> Iterator[str]:
    if seq_len != known.count:
        yield f"seq_lens of {rid} is {seq_len}, it has {known.count} tokens"
    elif token != known.token:
        yield f"input_ids of {rid} is {token}, its last token is {known.token}"


def _some(values: Sequence[int]) -> str:
    return str([*values[:6]]) + (f" ... ({len(values)})" if len(values) > 6 else "")
