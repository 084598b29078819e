"""Accessors for SGLang's Req."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from pytest_pprank.sglang.compat.seams import missing, need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req


def kv_of(req: Any) -> Any:
    """Return the object with a request's slot and lengths; up to 0.5.15 the request itself."""
    return getattr(req, "kv", req)


def slot_of(req: Any) -> int | None:
    """Return the request slot of a request; None if it has none."""
    slot = _of_kv(req, "req_pool_idx")
    return None if slot is None else int(slot)


def allocated_tokens_of(req: Any) -> int:
    """Return how many KV tokens a request owns, including locked ones of the tree cache."""
    return int(_of_kv(req, "kv_allocated_len") or 0)


def committed_tokens_of(req: Any) -> int:
    """Return for how many of a request's tokens the KV is computed."""
    return int(_of_kv(req, "kv_committed_len") or 0)


def _of_kv(req: Any, name: str) -> int | None:
    """From 0.5.16 to 0.5.18 the request itself has some of what its `kv` has later."""
    value: int | None = getattr(kv_of(req), name, getattr(req, name, None))
    return value


def finish_reason_of(req: Any) -> str:
    """Return the class name of a request's finish reason; "" if it has not finished."""
    reason = getattr(req, "finished_reason", None)
    return "" if reason is None else type(reason).__name__


def ends_by_abort(req: Any) -> bool:
    """Return whether SGLang will end a request as aborted with the result of its next forward."""
    return type(getattr(req, "to_finish", None)).__name__ == "FINISH_ABORT"


def finished_by_length(req: Any) -> bool:
    """Return whether a request has finished by its length, not by an abort or an error."""
    return finish_reason_of(req) == "FINISH_LENGTH"


def tokens_of(req: Any) -> int:
    """Return how many tokens a request has, including its prompt."""
    return len(req.origin_input_ids) + len(req.output_ids)


def last_token_of(req: Any) -> int:
    """Return the last token that the host knows of a request."""
    return int((req.output_ids or req.origin_input_ids)[-1])


def most_tokens_of(req: Any) -> int:
    """Return the largest number of tokens that a request may reach."""
    return len(req.origin_input_ids) + int(req.sampling_params.max_new_tokens or 0)


def tokens_to_send_of(req: Any) -> int:
    """Return for how many tokens prefill must send the KV: decode may already have a prefix."""
    return len(req.origin_input_ids) - int(getattr(req, "disagg_decode_prefix_len", 0))


def sender_of(req: Any) -> Hashable:
    """Return the KV sender of a prefill request; None if it has none."""
    sender: Hashable = getattr(req, "disagg_kv_sender", None)
    return sender


def room_of(transfer: Any) -> int:
    """Return the bootstrap room of a KV sender or receiver; 0 without one."""
    return int(getattr(transfer, "bootstrap_room", None) or 0)


def starts_early(req: Any) -> bool:
    """Return whether prefill computes a request before its handshake with decode is done."""
    return bool(getattr(req, "pending_bootstrap", False))


def wrapped_request(value: Any) -> Any:
    """Return the request that an object wraps: decode wraps requests whose KV is arriving."""
    wraps = "req" in getattr(type(value), "__dataclass_fields__", ())
    return value.req if wraps else value


def is_request(value: object) -> TypeGuard[Req]:
    """Return whether this is an SGLang request."""
    return type(value).__name__ == "Req"


def holds_kv(req: Any) -> bool:
    """Return whether a request owns KV or a slot."""
    kv = getattr(req, "kv", None)
    if kv is not None and hasattr(kv, "holds_kv"):
        return bool(kv.holds_kv)
    return getattr(req, "req_pool_idx", None) is not None


def set_extend(req: Any, chunk: int | None) -> bool:
    """Let a request's next forward compute `chunk` tokens (default: all).

    Returns whether that leaves tokens of the prompt for a later forward.
    """
    in_tokens = hasattr(req, "prefix_len")  # from 0.5.22, which keeps no indices
    start = req.prefix_len if in_tokens else len(need(req, "prefix_indices"))
    total = len(req.full_untruncated_fill_ids)
    end = total if chunk is None else min(total, start + chunk)
    if hasattr(req, "set_extend_range"):
        req.set_extend_range(start, end)
    elif hasattr(req, "extend_end"):  # from 0.5.22
        req.extend_end = end
    elif hasattr(req, "set_extend_input_len"):  # up to 0.5.15
        req.fill_len = end
        req.set_extend_input_len(end - start)
    else:
        raise missing("Req.set_extend_range")
    return bool(end < total)


def lock_prefix(tree_cache: Any, req: Any) -> None:
    """Lock the matched prefix, and store the receipt if this SGLang has one (from 0.5.20 on)."""
    if hasattr(req, "lock"):  # from 0.5.22
        req.lock = tree_cache.lock(req.last_node)
        return
    result = tree_cache.inc_lock_ref(req.last_node)
    if hasattr(req, "lock_receipt"):
        req.lock_receipt = result.to_dec_params()


def cache_keeper() -> Callable[[Any, Any], object]:
    """Return SGLang's function that puts a running request's computed KV into the cache."""
    common = import_module("sglang.srt.mem_cache.common")
    if hasattr(common, "maybe_cache_unfinished_req"):  # up to 0.5.21
        return cast("Callable[[Any, Any], object]", common.maybe_cache_unfinished_req)
    return cast("Callable[[Any, Any], object]", need(common, "checkpoint_kv_cache"))
