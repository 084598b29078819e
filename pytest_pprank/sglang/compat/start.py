"""What a Scheduler needs before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from pytest_pprank.sglang.compat.seams import need
from pytest_pprank.sglang.static.release import sglang_version


def publisher() -> tuple[ModuleType, Callable[..., Any]] | None:
    """Return SGLang's module of the process-wide config, and its function that installs a config.

    None before 0.5.17, where a Scheduler installs it itself or needs none.
    """
    try:
        context = import_module("sglang.srt.runtime_context")  # from 0.5.16
    except ModuleNotFoundError:
        return None
    publish = getattr(context, "publish", None)
    return None if publish is None else (context, publish)


def resolve_and_check(server_args: Any) -> None:
    """Let SGLang derive unset server args and check them, as its Engine does.

    Call before they are published: after that SGLang does not allow changes. Raises what SGLang
    raises.
    """
    if hasattr(server_args, "resolve_once"):  # from 0.5.19; before, the constructor does it
        server_args.resolve_once()
    if hasattr(server_args, "check_server_args"):
        server_args.check_server_args()


def name_of_row_copy(module: ModuleType) -> str:
    """Return SGLang's name of the kernel with which DP attention copies rows."""
    return "memcpy_func" if hasattr(module, "memcpy_func") else "memcpy_triton"  # up to 0.5.18


def name_instance(ports: Any, name: str) -> None:
    """Give a Scheduler's pipeline a unique name on this host, if this SGLang has such names."""
    if hasattr(ports, "instance_id"):
        ports.instance_id = name


def thread_binding(entries: Sequence[str], stage: int, tp_size: int) -> str:
    """Return SGLANG_CPU_OMP_THREADS_BIND for a stage of `tp_size` ranks.

    `entries`: the cores of each rank of the role. Up to 0.5.18 SGLang wants one entry per rank of
    the stage (FACTS, version drift).
    """
    if _release() < (0, 5, 19):
        entries = entries[stage * tp_size : (stage + 1) * tp_size]
    return "|".join(entries)


def _release() -> tuple[int, ...]:
    version = (sglang_version() or "0").split("+")[0].split(".")
    return tuple(int(part) for part in version[:3] if part.isdigit())


def allow_deterministic_sampling(backend: object) -> None:
    """Let ``enable_deterministic_inference`` be used without a GPU: seeds then count.

    SGLang has a list of the attention backends that give the same result in any batch. Those of a
    CPU run one request after the other, so they do. SGLang also replaces torch's matrix products by
    Triton kernels, which exist for GPUs only: here torch's stay.
    """
    args = import_module("sglang.srt.server_args")
    if backend not in need(args, "DETERMINISTIC_ATTENTION_BACKEND_CHOICES"):
        need(args, "add_deterministic_attention_backend_choices")([backend])
    kernels = import_module("sglang.srt.batch_invariant_ops")
    need(kernels, "enable_batch_invariant_mode")
    setattr(kernels, "enable_batch_invariant_mode", lambda: None)  # noqa: B010
