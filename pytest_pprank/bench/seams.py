"""The ``seams`` command: lists the places of SGLang that the plugin uses, and what needs each.

Exit code 0: all exist. 1: some are missing. 2: no SGLang is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pytest_pprank.report.off import needed_by
from pytest_pprank.sglang.events.places import HOOKS, PLACES, Methods, Place
from pytest_pprank.sglang.events.shapes import (
    ClassInspector,
    Inspector,
    SourceInspector,
    find_shape,
)
from pytest_pprank.sglang.static.installed import Installed, installed


@dataclass(frozen=True)
class Row:
    """The findings for one place. If it is missing, `shape` is empty and `lacks` is not."""

    name: str
    kind: str
    about: str
    roles: tuple[str, ...]
    shape: str
    where: tuple[str, ...]
    lacks: tuple[str, ...]
    needed_by: tuple[str, ...]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``seams`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "seams",
        help="say where this SGLang has what the plugin hooks and needs, and what is off",
        description="Each hook point and each other place of SGLang that the plugin needs: where "
        "it is, which of the known shapes it has, what depends on it. For an SGLang that nobody "
        "has tried yet: what is missing, and which checks, faults and fixtures are off for it. "
        "Exit code 1 when something is missing.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--import",
        dest="by_import",
        action="store_true",
        help="import SGLang, as ranks do, and look at its classes (10 s); else its files are read",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run ``seams``; return the exit code."""
    here = installed()
    if here is None:
        print("seams: no SGLang is installed; python -m pytest_pprank setup", file=sys.stderr)
        return 2
    rows = list(inspect_all(_inspector(here, by_import=args.by_import)))
    if args.json:
        header = {"version": here.version, "root": str(here.root), "commit": here.commit}
        print(json.dumps({"sglang": header, "places": [asdict(row) for row in rows]}, indent=1))
    else:
        print("\n".join(_lines(here, rows)))
    return 1 if any(row.lacks for row in rows) else 0


def _inspector(here: Installed, *, by_import: bool) -> Inspector:
    if not by_import:
        return SourceInspector(here.root)
    from pytest_pprank.sglang.platform.preload import import_sglang

    import_sglang("cpu")
    return ClassInspector()


def inspect_all(inspector: Inspector) -> Iterator[Row]:
    """Yield the findings for each place."""
    for place in PLACES.values():
        found = find_shape(place, inspector)
        shape = found.shape
        yield Row(
            name=place.name,
            kind="event" if place in HOOKS else "seam",
            about=place.about,
            roles=place.roles,
            shape=shape.name if shape else "",
            where=tuple(_where(it) for it in shape.methods) if shape else (),
            lacks=found.lacks,
            needed_by=tuple(needed_by(place.name)),
        )


def _where(methods: Methods) -> str:
    names = ", ".join(methods.names)
    return f"{methods.module}: {f'{methods.owner}: ' if methods.owner else ''}{names}"


def _lines(here: Installed, rows: list[Row]) -> Iterator[str]:
    missing = [row for row in rows if row.lacks]
    total = f"{len(rows)} places"
    yield f"SGLang {here}: {total}, {f'{len(missing)} missing' if missing else 'nothing missing'}"
    for row in missing:
        yield ""
        yield f"MISSING {row.kind} {row.name}: {row.about}{_for(row)}"
        yield f"  SGLang has no {', '.join(row.lacks)}"
        yield f"  off: {', '.join(row.needed_by) or 'nothing'}"
        yield f"  known shapes: {'; '.join(it.name for it in _place(row).shapes)}"
    for kind in ("event", "seam"):
        yield ""
        yield f"{kind}s"
        for row in rows:
            if row.kind == kind and row.shape:
                yield from _found(row)


def _found(row: Row) -> Iterator[str]:
    yield f"  {row.name}: {row.about}{_for(row)}"
    yield f"    {row.shape}; needed by: {', '.join(row.needed_by) or 'nothing'}"
    yield from (f"    in {where}" for where in row.where)


def _for(row: Row) -> str:
    return f" ({' and '.join(row.roles)})" if row.roles else ""


def _place(row: Row) -> Place:
    return PLACES[row.name]
