"""The reverts to measure: files, or names of shipped ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_pprank.bench.device_order import is_of_device_order
from pytest_pprank.errors import DoesNotFit, UsageError
from pytest_pprank.sglang import reverts
from pytest_pprank.sglang.reverts import Revert
from pytest_pprank.sglang.reverts.apply import edited_in


@dataclass(frozen=True)
class Case:
    """One revert. `spec`: the value for ``--pprank-revert``; `digest` changes with its content.

    `present`: the dotted names that it edits in the installed SGLang; empty if it does not apply,
    and then `misfit` says why. `device_order`: none of its edits can have an effect on device cpu.
    `only_reaching`: tests that do not come to its edits are not run; `present` then names what a
    probe notes (see `order`), which may be finer than a function. `most_tests`: of these tests the
    first ones only.
    """

    revert: Revert
    spec: str
    digest: str
    present: tuple[str, ...] = ()
    misfit: str = ""
    device_order: bool = False
    only_reaching: bool = False
    most_tests: int | None = None

    @property
    def id(self) -> str:
        """Its name in tables and in the JSON file."""
        return self.revert.id

    @property
    def targets(self) -> tuple[str, ...]:
        """Dotted names of the functions that it edits, in any version of SGLang."""
        return tuple(target for patch in self.revert.patches for target in patch.targets)

    @property
    def functions(self) -> frozenset[str]:
        """The bare names of these functions."""
        return frozenset(target.rpartition(".")[2] for target in self.targets)


def load_cases(specs: Sequence[str], package_root: Path) -> list[Case]:
    """Return the cases in folders, files and names, each revert once; raises UsageError."""
    cases: dict[str, Case] = {}
    for spec in [word for given in specs for word in _spread(given)]:
        case = _case(spec, package_root)
        known = cases.setdefault(case.id, case)
        if known.spec != case.spec:
            raise UsageError(
                f"two reverts have the id {case.id!r}: {known.spec} and {case.spec}; "
                "give one of them another 'id'"
            )
    return list(cases.values())


def _spread(spec: str) -> list[str]:
    """Return the revert files in a folder; for anything else the spec itself."""
    folder = Path(spec)
    if not folder.is_dir():
        return [spec]
    files = sorted(f for f in folder.iterdir() if f.suffix in (".yaml", ".yml") and f.is_file())
    if not files:
        raise UsageError(f"{spec}: no revert in this folder (files named *.yaml or *.yml)")
    return [str(file) for file in files]


def _case(spec: str, package_root: Path) -> Case:
    try:
        revert = reverts.resolve(spec)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("--pprank-revert").lstrip(": ")) from None
    # the measured pytest runs in another folder, so a file needs its absolute path
    shipped = reverts.NAMED.get(revert.id) is revert
    where = revert.id if shipped else str(Path(spec).resolve())
    digest = hashlib.sha256(repr(revert).encode()).hexdigest()
    try:
        edited = edited_in(revert, package_root)
    except DoesNotFit as error:
        return Case(revert, where, digest, misfit=str(error))
    present = tuple(each.target for each in edited)
    return Case(revert, where, digest, present, device_order=is_of_device_order(edited))
