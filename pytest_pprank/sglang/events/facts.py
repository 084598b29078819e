"""Short facts about a call of a hook point for `observe`, copied at once: the objects change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_pprank.sglang.compat.batches import extends_of, rids_of, tensor_field
from pytest_pprank.sglang.compat.disagg import status_name
from pytest_pprank.sglang.compat.requests import room_of, slot_of
from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.events import consensus
from pytest_pprank.sglang.events.forwards import forward_of

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import ForwardBatch
    from pytest_pprank.sglang.events.hook_points import HookCall


@dataclass(frozen=True)
class Facts:
    """What is known about a call; fields that do not apply to its hook point are empty.

    `rids`: ids of the requests, in the batch's order. `mode`: SGLang's ForwardMode in lower case.
    `extends`: the range of tokens of each request's prompt (half open). `tokens`: the number of
    tokens of the batch, or of KV. `tensors`: dtype and shape by name, such as ``int64[62]``. `kv`:
    KV indices that were allocated, freed or sent; for request slots the slot numbers. `group`,
    `peer`, `tag` and `nbytes`: of a message; `peer` is a global rank. `status`: of a KV transfer,
    a name of SGLang's KVPoll.
    """

    rids: tuple[str, ...] = ()
    mode: str = ""
    extends: tuple[tuple[int, int], ...] = ()
    tokens: int | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    kv: tuple[int, ...] = ()
    group: str = ""
    peer: int | None = None
    tag: int = 0
    nbytes: int = 0
    status: str = ""

    def __str__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if value or value == 0}
        del shown["tag"]
        return ", ".join(f"{name}={value}" for name, value in shown.items() if value != {})


def schedule_batch(call: HookCall) -> Facts:
    """Describe a ScheduleBatch that has been prepared."""
    batch = call.args[0]
    ran = forward_of(batch, 0)
    tensors = _tensors(batch, "input_ids", "prefill_input_ids_cpu", "seq_lens", "out_cache_loc")
    tokens = sum(end - start for start, end in ran.extends) or len(ran.rids)
    return Facts(ran.rids, ran.mode, ran.extends, tokens, tensors, _indices(batch.out_cache_loc))


def init_new(call: HookCall) -> Facts:
    """Describe the ForwardBatch that has been made."""
    return _of_forward_batch(call.result)


def forward(call: HookCall) -> Facts:
    """Describe the ForwardBatch that enters the model."""
    return _of_forward_batch(call.argument(1, "forward_batch"))


def _of_forward_batch(batch: ForwardBatch) -> Facts:
    mode = need(batch, "forward_mode")
    names = ("input_ids", "positions", "seq_lens", "req_pool_indices", "out_cache_loc")
    ids = tensor_field(batch, "input_ids")
    return Facts(
        rids=rids_of(batch),
        mode=mode.name.lower(),
        extends=tuple(extends_of(batch)) if mode.is_extend() else (),
        tokens=None if ids is None else len(ids),
        tensors=_tensors(batch, *names),
        kv=_indices(batch.out_cache_loc),
    )


def batch_result(call: HookCall) -> Facts:
    """Describe the batch whose result is about to be processed."""
    ran = forward_of(call.argument(1, "batch"), 0)
    return Facts(ran.rids, ran.mode)


def kv_alloc(call: HookCall) -> Facts:
    """Describe KV tokens that were allocated; empty if there was no room."""
    taken = _indices(call.result)
    return Facts(tokens=len(taken), kv=taken)


def kv_free(call: HookCall) -> Facts:
    """Describe KV tokens that are being freed."""
    freed = tuple(index for tensor in call.arguments for index in _indices(tensor))
    return Facts(tokens=len(freed), kv=freed)


def nothing(call: HookCall) -> Facts:  # noqa: ARG001
    """Return empty facts, for calls that are only counted."""
    return Facts()


def slot_alloc(call: HookCall) -> Facts:
    """Describe the request slots that were allocated."""
    reqs = call.argument(1, "reqs") or ()
    return Facts(rids=tuple(req.rid for req in reqs), kv=tuple(call.result or ()))


def slot_free(call: HookCall) -> Facts:
    """Describe the request slot that is being freed."""
    req = call.argument(1, "req")
    slot = slot_of(req)
    return Facts(rids=(req.rid,), kv=() if slot is None else (slot,))


def metadata_alloc(call: HookCall) -> Facts:
    """Describe a metadata slot that was allocated; empty if there was none left."""
    return Facts(kv=() if call.result is None else (int(call.result),))


def metadata_free(call: HookCall) -> Facts:
    """Describe a metadata slot that is being freed."""
    return Facts(kv=(int(call.argument(1, "free_index")),))


def handshake(call: HookCall) -> Facts:
    """Describe the requests that prefill has started."""
    return Facts(rids=consensus.handshakes_done(call).rids)


def room_told(call: HookCall) -> Facts:
    """Describe a report to the first stage; `tag` is the bootstrap room."""
    event = consensus.room_told(call)
    return Facts(status=event.status, tag=event.room)


def transfer_send(call: HookCall) -> Facts:
    """Describe KV that is being sent; `tag` is the bootstrap room."""
    sent = _indices(call.argument(1, "kv_indices"))
    return Facts(tokens=len(sent), kv=sent, tag=room_of(call.args[0]))


def transfer_poll(call: HookCall) -> Facts:
    """Describe the state of a transfer; `tag` is the bootstrap room."""
    return Facts(status=status_name(call.result), tag=room_of(call.args[0]))


def message(call: HookCall) -> Facts:
    """Describe a message between two ranks."""
    operation = call.operation
    assert operation is not None
    shapes = [f"{operation.dtype}{list(shape)}" for shape in operation.shapes]
    return Facts(
        tensors={str(number): text for number, text in enumerate(shapes)},
        group=operation.label,
        peer=operation.peer,
        tag=operation.tag,
        nbytes=operation.nbytes,
    )


def _tensors(owner: object, *names: str) -> dict[str, str]:
    values = {name: tensor_field(owner, name) for name in names}
    return {
        name: f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        for name, value in values.items()
        if value is not None
    }


def _indices(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else tuple(value.tolist())
