"""Which functions to break: modules and functions from the command line, or the default ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.mutants.source import Function, functions_in

MODULES = (
    "sglang.srt.managers.scheduler_pp_mixin",
    "sglang.srt.disaggregation.prefill",
    "sglang.srt.disaggregation.decode",
    "sglang.srt.disaggregation.utils",
    "sglang.srt.disaggregation.common.conn",
    "sglang.srt.disaggregation.mooncake.conn",
    "sglang.srt.managers.scheduler_components.dynamic_chunk_sizer",
    "sglang.srt.managers.schedule_batch",
    "sglang.srt.managers.overlap_utils",
    "sglang.srt.managers.schedule_policy",
)
"""Pipeline, disaggregation and batch code of SGLang 0.5.23; older releases lack some of them."""


def selected(specs: Sequence[str], package_root: Path) -> list[Function]:
    """Return the functions that are named, each once; those of `MODULES` if none is.

    A spec is ``MODULE``, ``MODULE:FUNCTION``, ``MODULE:CLASS`` or ``MODULE:CLASS.METHOD``. Raises
    UsageError for what the installed SGLang does not have.
    """
    found: dict[str, Function] = {}
    for function in _of_specs(specs, package_root) if specs else _default(package_root):
        found.setdefault(function.target, function)
    return list(found.values())


def _default(package_root: Path) -> Iterator[Function]:
    for module in MODULES:
        try:
            yield from functions_in(module, package_root)
        except UsageError:
            continue  # another release


def _of_specs(specs: Sequence[str], package_root: Path) -> Iterator[Function]:
    for spec in specs:
        module, colon, name = spec.partition(":")
        if colon and not name:
            raise UsageError(f"{spec}: a function or class is missing behind the colon")
        functions = functions_in(module, package_root)
        chosen = [each for each in functions if _is_named(each, name)]
        if not chosen:
            known = [each.name for each in functions]
            if not name:
                raise UsageError(f"{spec}: this module defines no function")
            near = did_you_mean(name, [*known, *(each.rpartition(".")[2] for each in known)])
            raise UsageError(f"{spec}: {module} has no function or class {name!r}{near}")
        yield from chosen


def _is_named(function: Function, name: str) -> bool:
    return not name or function.name == name or function.name.startswith(f"{name}.")
