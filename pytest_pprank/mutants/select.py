"""Which functions to break: modules and functions from the command line, or the default ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pytest_pprank.errors import UsageError, did_you_mean
from pytest_pprank.mutants.points import Mutant
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

    A spec is ``MODULE``, ``MODULE:FUNCTION``, ``MODULE:CLASS`` or ``MODULE:CLASS.METHOD``; the
    id of a mutant names its function, too. Raises UsageError for what this SGLang does not have.
    """
    found: dict[str, Function] = {}
    for function in _of_specs(specs, package_root) if specs else _default(package_root):
        found.setdefault(function.target, function)
    return list(found.values())


def chosen(mutants: Iterable[Mutant], specs: Sequence[str]) -> list[Mutant]:
    """Return the mutants that are named by their ids, or by the functions that they are in.

    Raises UsageError for the id of a mutant that does not exist.
    """
    found = list(mutants)
    ids = {spec for spec in specs if spec.count(":") > 1}
    known = {mutant.id for mutant in found}
    for unknown in sorted(ids - known):
        raise UsageError(f"{unknown}: there is no such mutant{did_you_mean(unknown, known)}")
    whole = {":".join(spec.split(":")[:2]) for spec in specs if spec not in ids}
    return [m for m in found if not ids or m.id in ids or _is_in(m.function, whole)]


def _is_in(function: Function, specs: Iterable[str]) -> bool:
    return any(_names(spec, function) for spec in specs)


def _names(spec: str, function: Function) -> bool:
    module, _, name = spec.partition(":")
    return module == function.module and _is_named(function, name)


def _default(package_root: Path) -> Iterator[Function]:
    for module in MODULES:
        try:
            yield from functions_in(module, package_root)
        except UsageError:
            continue  # another release


def _of_specs(specs: Sequence[str], package_root: Path) -> Iterator[Function]:
    for spec in specs:
        module, colon, name = ":".join(spec.split(":")[:2]).partition(":")
        if colon and not name:
            raise UsageError(f"{spec}: a function or class is missing behind the colon")
        functions = functions_in(module, package_root)
        named = [each for each in functions if _is_named(each, name)]
        if not named:
            known = [each.name for each in functions]
            if not name:
                raise UsageError(f"{spec}: this module defines no function")
            near = did_you_mean(name, [*known, *(each.rpartition(".")[2] for each in known)])
            raise UsageError(f"{spec}: {module} has no function or class {name!r}{near}")
        yield from named


def _is_named(function: Function, name: str) -> bool:
    return not name or function.name == name or function.name.startswith(f"{name}.")
