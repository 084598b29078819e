"""What a Req says of itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from pytest_pprank.sglang.compat.seams import missing, need

if TYPE_CHECKING:
    from pytest_pprank.sglang.compat.objects import Req


def kv_of(req: Any) -> Any:
    """Return what has a request's slot and lengths: up to 0.5.19 the request itself."""
    return getattr(req, "kv", req)


def slot_of(req: Any) -> int | None:
    """Return the request slot that a request holds, None without one."""
    slot = getattr(kv_of(req), "req_pool_idx", None)
    return None if slot is None else int(slot)


def allocated_tokens_of(req: Any) -> int:
    """Return how many KV tokens a request holds: its own, or locked ones of the tree cache."""
    return int(getattr(kv_of(req), "kv_allocated_len", 0) or 0)


def committed_tokens_of(req: Any) -> int:
    """Return of how many of its tokens a request has the KV."""
    return int(getattr(kv_of(req), "kv_committed_len", 0) or 0)


def finish_reason_of(req: Any) -> str:
    """Return why a request has finished, by the name of SGLang's class; empty where it has not."""
    reason = getattr(req, "finished_reason", None)
    return "" if reason is None else type(reason).__name__


def ends_by_abort(req: Any) -> bool:
    """Whether a request ends as aborted with the result of the next forward that it is in."""
    return type(getattr(req, "to_finish", None)).__name__ == "FINISH_ABORT"


def finished_by_length(req: Any) -> bool:
    """Whether a request has come to its end by itself, and not by an abort or an error."""
    return finish_reason_of(req) == "FINISH_LENGTH"


def tokens_of(req: Any) -> int:
    """Return how many tokens a request has, with its prompt."""
    return len(req.origin_input_ids) + len(req.output_ids)


def last_token_of(req: Any) -> int:
    """Return the last token that the host knows of a request."""
    return int((req.output_ids or req.origin_input_ids)[-1])


def most_tokens_of(req: Any) -> int:
    """Return how many tokens a request may come to."""
    return len(req.origin_input_ids) + int(req.sampling_params.max_new_tokens or 0)


def tokens_to_send_of(req: Any) -> int:
    """Return of how many tokens prefill must send the KV: decode may have a prefix already."""
    return len(req.origin_input_ids) - int(getattr(req, "disagg_decode_prefix_len", 0))


def sender_of(req: Any) -> Hashable:
    """Return the KV sender of a request of prefill's, None without one."""
    sender: Hashable = getattr(req, "disagg_kv_sender", None)
    return sender


def room_of(transfer: Any) -> int:
    """Return the bootstrap room of a KV sender or receiver; 0 without one."""
    return int(getattr(transfer, "bootstrap_room", None) or 0)


def starts_early(req: Any) -> bool:
    """Say whether prefill computes a request before its handshake with decode is done."""
    return bool(getattr(req, "pending_bootstrap", False))


def wrapped_request(value: Any) -> Any:
    """Return the request that an object stands for: decode wraps those whose KV is on its way."""
    wraps = "req" in getattr(type(value), "__dataclass_fields__", ())
    return value.req if wraps else value


def is_request(value: object) -> TypeGuard[Req]:
    """Whether this is one of SGLang's requests."""
    return type(value).__name__ == "Req"


def holds_kv(req: Any) -> bool:
    """Whether a request holds KV or a slot."""
    kv = getattr(req, "kv", None)
    if kv is not None and hasattr(kv, "holds_kv"):
        return bool(kv.holds_kv)
    return getattr(req, "req_pool_idx", None) is not None


def set_extend(req: Any, chunk: int | None) -> bool:
    """Let the request's next forward compute `chunk` tokens (default: all); say whether it cuts."""
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
    """Lock the matched prefix, keeping the receipt where this SGLang wants one (from 0.5.20)."""
    if hasattr(req, "lock"):  # from 0.5.22
        req.lock = tree_cache.lock(req.last_node)
        return
    result = tree_cache.inc_lock_ref(req.last_node)
    if hasattr(req, "lock_receipt"):
        req.lock_receipt = result.to_dec_params()


def cache_keeper() -> Callable[[Any, Any], object]:
    """Return SGLang's function that puts what a running request has computed into the cache."""
    common = import_module("sglang.srt.mem_cache.common")
    if hasattr(common, "maybe_cache_unfinished_req"):  # up to 0.5.21
        return cast("Callable[[Any, Any], object]", common.maybe_cache_unfinished_req)
    return cast("Callable[[Any, Any], object]", need(common, "checkpoint_kv_cache"))
