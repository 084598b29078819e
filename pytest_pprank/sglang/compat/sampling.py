"""What requests pass to SGLang's sampler and sessions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from pytest_pprank.sglang.compat.seams import need


def barring_processor() -> str:
    """Return a logit processor of SGLang's, as text; it bars ``custom_params["token_ids"]``."""
    module = import_module("sglang.srt.sampling.custom_logit_processor")
    return str(need(module, "DisallowedTokensLogitsProcessor").to_str())


def penalizers_of(info: Any) -> Iterator[object]:
    """Yield the penalizers of a sampling_info that have tensors; none while a forward runs."""
    orchestrator = getattr(info, "penalizer_orchestrator", None)
    for penalizer in getattr(orchestrator, "penalizers", {}).values():
        if penalizer.is_prepared():
            yield penalizer


def in_session(name: str, after: str | None) -> dict[str, object]:
    """Return the fields of a request that continues session `name` `after` a request (or none)."""
    params = need(import_module("sglang.srt.managers.io_struct"), "SessionParams")
    return {"session_params": params(id=name, rid=after)}
