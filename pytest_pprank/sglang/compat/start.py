"""What a Scheduler wants before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from pytest_pprank.sglang.static.release import sglang_version


def publisher() -> tuple[ModuleType, Callable[..., Any]] | None:
    """Return SGLang's module of the process-wide config, and what installs one there (from 0.5.17);
    None before, where a Scheduler does it itself or does without.
    """
    try:
        context = import_module("sglang.srt.runtime_context")  # from 0.5.16
    except ModuleNotFoundError:
        return None
    publish = getattr(context, "publish", None)
    return None if publish is None else (context, publish)


def resolve_and_check(server_args: Any) -> None:
    """Let SGLang derive what is left open and refuse what does not go together, as its Engine does.

    Before they are published: up to now they may be written to. Raises what SGLang raises.
    """
    if hasattr(server_args, "resolve_once"):  # from 0.5.19; before, making them does it
        server_args.resolve_once()
    if hasattr(server_args, "check_server_args"):
        server_args.check_server_args()


def name_instance(ports: Any, name: str) -> None:
    """Give a Scheduler's pipeline its name on this host, where this SGLang has such names."""
    if hasattr(ports, "instance_id"):
        ports.instance_id = name


def thread_binding(entries: Sequence[str], stage: int) -> str:
    """Return SGLANG_CPU_OMP_THREADS_BIND for a stage, out of the cores for each of them.

    Up to 0.5.18 it wants as many entries as TP ranks, that is one (FACTS, version drift).
    """
    return entries[stage] if _release() < (0, 5, 19) else "|".join(entries)


def _release() -> tuple[int, ...]:
    version = (sglang_version() or "0").split("+")[0].split(".")
    return tuple(int(part) for part in version[:3] if part.isdigit())
