"""A mutant as a revert, which is how it is applied on ranks, and as the case of a bench."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

from pytest_pprank.bench.cases import Case
from pytest_pprank.bench.device_order import is_of_device_order
from pytest_pprank.errors import DoesNotFit, UsageError
from pytest_pprank.mutants.points import Mutant
from pytest_pprank.mutants.sites import site_of
from pytest_pprank.sglang.reverts.apply import edited_in
from pytest_pprank.sglang.reverts.model import Edit, Patch, Revert
from pytest_pprank.sglang.reverts.place import Place


def revert_of(mutant: Mutant) -> Revert:
    """Return the revert that makes the one change of a mutant."""
    edit = Edit(mutant.place, text=mutant.text)
    patch = Patch((mutant.function.target,), (edit,))
    return Revert(mutant.id, (patch,), title=f"line {mutant.line}: {mutant.words}")


def case_of(
    mutant: Mutant, folder: Path, package_root: Path, most_tests: int | None = None
) -> Case:
    """Return its case, whose revert is written to a file in `folder`.

    A change that Python or the machinery of reverts refuses is a case that does not apply.
    """
    revert = revert_of(mutant)
    digest = hashlib.sha256(repr(revert).encode()).hexdigest()
    file = folder / f"{digest[:16]}.yaml"
    file.write_text(dumped(revert), "utf-8")
    try:
        edited = edited_in(revert, package_root)
    except (DoesNotFit, UsageError) as error:
        return Case(revert, str(file), digest, misfit=str(error))
    return Case(
        revert,
        str(file),
        digest,
        (site_of(mutant),),
        device_order=is_of_device_order(edited),
        only_reaching=True,
        most_tests=most_tests,
    )


def dumped(revert: Revert) -> str:
    """Return a revert whose matches are places as the YAML file that ``--pprank-revert`` takes."""
    patches = [
        {"target": list(patch.targets), "edits": [_edit(edit) for edit in patch.edits]}
        for patch in revert.patches
    ]
    head = {"id": revert.id, "title": revert.title, "patches": patches}
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)


def _edit(edit: Edit) -> dict[str, object]:
    place = edit.match
    assert isinstance(place, Place)
    match = {"at": [*place.start, *place.end], "text": place.text, "whole": place.whole}
    action = {"replace": "replacement"}.get(edit.action, edit.action)
    return {"match": match, action: edit.text}
