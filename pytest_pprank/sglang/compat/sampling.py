"""What requests pass to SGLang's sampler and sessions."""

from __future__ import annotations

from importlib import import_module

from pytest_pprank.sglang.compat.seams import need


def barring_processor() -> str:
    """Return a logit processor of SGLang's, as text; it bars ``custom_params["token_ids"]``."""
    module = import_module("sglang.srt.sampling.custom_logit_processor")
    return str(need(module, "DisallowedTokensLogitsProcessor").to_str())


def in_session(name: str, after: str | None) -> dict[str, object]:
    """Return the fields of a request that continues session `name` `after` a request (or none)."""
    params = need(import_module("sglang.srt.managers.io_struct"), "SessionParams")
    return {"session_params": params(id=name, rid=after)}
