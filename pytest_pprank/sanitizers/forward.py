"""What enters the model: all there, consistent with the requests, and with what the host knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pytest_pprank.sanitizers.base import Sanitizer

_CURE = (
    "look where the batch was prepared, filtered or merged last; the line above entered the model"
)


class Forward(Sanitizer):
    """Looks at each ForwardBatch where it enters the model; contents only where that is free."""

    name: ClassVar[str] = "forward"

    def begin(self) -> None:
        from pytest_pprank.devices.look import costs_nothing
        from pytest_pprank.sglang.materialize import note_origin, note_staging

        self._in_flight: dict[str, str] = {}
        watch = self.watch
        if costs_nothing(watch.pprank.device):
            watch.listen("prepare_for_extend", lambda passage: note_staging(passage.args[0]))
        watch.listen(
            "init_new",
            lambda passage: note_origin(passage.result, passage.argument(1, "batch")),
        )
        watch.listen("forward", self._forward)
        watch.listen("batch_result", self._result)

    def _forward(self, passage: Any) -> None:
        import torch

        from pytest_pprank.devices.look import costs_nothing
        from pytest_pprank.sglang.fields import FORWARD_BATCH
        from pytest_pprank.sglang.materialize import check_batch, origin_of
        from pytest_pprank.sglang.taps import call_sites

        batch, device = passage.argument(1, "forward_batch"), torch.device(passage.args[0].device)
        mode = batch.forward_mode
        plain = mode.is_extend() and not mode.is_target_verify()
        if mode.is_idle() or not (plain or mode.is_decode()):
            return
        on_host = costs_nothing(device)
        fields = None if on_host else ["input_ids", "positions", "seq_lens", "out_cache_loc"]
        problems = [str(finding) for finding in check_batch(batch, FORWARD_BATCH, device, fields)]
        origin = origin_of(batch)
        if not problems and origin is not batch:
            problems += _problems(batch, origin, passage.args[0], on_host=on_host)
            problems += self._twice(origin)
        for problem in problems:
            self.watch.report(
                f"a {mode.name.lower()} enters the model: {problem}", call_sites(), _CURE
            )

    def _twice(self, batch: Any) -> Iterator[str]:
        """One request is in one microbatch at a time, until its result has been processed."""
        from pytest_pprank.sglang.engine_loop import iteration_of_this_thread

        if batch.enable_overlap or iteration_of_this_thread() is None:
            return  # a test's own forward has no result that SGLang would process
        decode = batch.forward_mode.is_decode()
        for req in batch.reqs:
            if decode and req.rid in self._in_flight:
                earlier = self._in_flight[req.rid]
                yield f"{req.rid} is in another microbatch, whose result is awaited: {earlier}"
            self._in_flight[req.rid] = batch.forward_mode.name.lower()

    def _result(self, passage: Any) -> None:
        for req in passage.argument(1, "batch").reqs:
            self._in_flight.pop(req.rid, None)

    def quiescent(self, scheduler: Any) -> None:  # noqa: ARG002
        self._in_flight.clear()


def _problems(batch: Any, origin: Any, runner: Any, *, on_host: bool) -> Iterator[str]:
    """Yield what is inconsistent between a ForwardBatch and the ScheduleBatch it was made of."""
    rids = [req.rid for req in origin.reqs]
    if len(set(rids)) < len(rids):
        yield f"a request is in the batch twice: {', '.join(rids)}"
    decode = batch.forward_mode.is_decode()
    lengths = [1] * len(rids) if decode else [int(n) for n in origin.extend_lens]
    for name in ("input_ids", "positions", "out_cache_loc"):
        count = getattr(batch, name).shape[-1]
        if count != sum(lengths):
            yield f"{name} has {count} entries, the requests' lengths are {lengths}"
            return
    for name in ("seq_lens", "req_pool_indices"):
        if len(getattr(batch, name)) != len(rids):
            yield f"{name} has {len(getattr(batch, name))} entries for {len(rids)} requests"
            return
    if on_host:
        yield from _contents(batch, origin, runner, lengths, decode=decode)


def _contents(
    batch: Any, origin: Any, runner: Any, lengths: Sequence[int], *, decode: bool
) -> Iterator[str]:
    from pytest_pprank.devices.look import host_values

    seq_lens, ids, taken, slots = (
        host_values(getattr(batch, name)).tolist()
        for name in ("seq_lens", "input_ids", "out_cache_loc", "req_pool_indices")
    )
    positions = host_values(batch.positions).tolist() if batch.positions.dim() == 1 else None
    table = host_values(runner.req_to_token_pool.req_to_token)
    start = 0
    for place, (req, length) in enumerate(zip(origin.reqs, lengths, strict=True)):
        end, whole = start + length, seq_lens[place]
        if decode and not origin.enable_overlap:
            yield from _decoded(req, ids[place], whole)
        wanted = list(range(whole - length, whole))
        if positions is not None and positions[start:end] != wanted:
            yield f"positions of {req.rid} are {_some(positions[start:end])}, not {_some(wanted)}"
        kept = table[slots[place], whole - length : whole].tolist()
        if taken[start:end] != kept:
            yield (
                f"out_cache_loc of {req.rid} is {_some(taken[start:end])}, its row of "
                f"req_to_token has {_some(kept)}"
            )
        start = end


def _decoded(req: Any, token: int, seq_len: int) -> Iterator[str]:
    known = len(req.origin_input_ids) + len(req.output_ids)
    if seq_len != known:
        yield f"seq_lens of {req.rid} is {seq_len}, it has {known} tokens"
        return
    last = (req.output_ids or req.origin_input_ids)[-1]
    if token != last:
        yield f"input_ids of {req.rid} is {token}, its last token is {last}"


def _some(values: Sequence[int]) -> str:
    return str([*values[:6]]) + (f" ... ({len(values)})" if len(values) > 6 else "")
