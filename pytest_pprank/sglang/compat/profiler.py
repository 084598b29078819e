"""Accessors for SGLang's dynamic-chunk profiler and its predictor.

The profiler is ``SchedulerPPMixin.profile_and_init_predictor`` up to 0.5.19 and
``DynamicChunkSizer.profile_and_fit`` from 0.5.20 on.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

from pytest_pprank.errors import SeamMissing
from pytest_pprank.sglang.compat.seams import missing, need

_HOMES = (
    ("sglang.srt.managers.scheduler_components.dynamic_chunk_sizer", "DynamicChunkSizer",
     "profile_and_fit"),
    ("sglang.srt.managers.scheduler_pp_mixin", "SchedulerPPMixin", "profile_and_init_predictor"),
)  # fmt: skip

SIZING = ("dynamic_chunk_sizer", "length_predictor", "enable_dynamic_chunking")
"""Attributes by which a Scheduler sizes chunks: a sizer from 0.5.20 on, else the other two."""


class Home(NamedTuple):
    """The class and method of the installed SGLang's profiler."""

    module: Any
    owner: Any
    method: str

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.method}"


def profiler_home() -> Home | None:
    """Return where the profiler is defined; None if this SGLang has none."""
    for module_name, class_name, method in _HOMES:
        try:
            module = import_module(module_name)
        except ModuleNotFoundError:
            continue
        owner = getattr(module, class_name, None)
        if owner is not None and method in vars(owner):
            return Home(module, owner, method)
    return None


def no_profiler() -> SeamMissing:
    """Return the error for an SGLang without a profiler."""
    places = " and ".join(f"{owner}.{method}" for _, owner, method in _HOMES)
    return missing(f"dynamic-chunk profiler (looked for {places})")


def strands_peers() -> bool:
    """Return whether a failure on stage 0 leaves the other stages waiting for its samples.

    Up to 0.5.19 the exception skips the broadcast; from 0.5.20 on None is broadcast instead.
    """
    home = profiler_home()
    return home is not None and home.method == "profile_and_init_predictor"


def run_again(scheduler: Any) -> None:
    """Run the profiler through SGLang's own entry point, which swallows exceptions."""
    if hasattr(scheduler, "maybe_init_dynamic_chunk_sizer"):
        scheduler.maybe_init_dynamic_chunk_sizer()
    elif hasattr(scheduler, "profile_and_init_predictor"):
        with suppress(Exception):  # as SGLang's caller does
            scheduler.profile_and_init_predictor()
    else:
        raise no_profiler()


def predict_chunk(scheduler: Any, history: int) -> int | None:
    """Return the chunk size predicted after `history` tokens; None if there is no predictor."""
    sizer = getattr(scheduler, "dynamic_chunk_sizer", None)
    if sizer is not None:
        return need(sizer, "predict")(history)  # type: ignore[no-any-return]
    if getattr(scheduler, "length_predictor", None) is not None:
        return need(scheduler, "predict_next_chunk_size")(history)  # type: ignore[no-any-return]
    return None
