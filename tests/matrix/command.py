"""The command line of ``tox -e matrix``.

Runs the stock suite on each locked SGLang and device, one after another, and writes the table of
docs/support-matrix.md. Runs that exist for this code are reused (unless --fresh is given).
"""

from __future__ import annotations

import argparse
import atexit
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.processes import adopt_orphans, end_descendants

from matrix import claims, junit
from matrix.page import DEVICES, Row, page, table
from matrix.product import ROOT, Product, is_checkout, product
from matrix.releases import environment, locked, older_one
from matrix.runs import Run, Store

_DEADLINE_S = 1800.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = _parser().parse_args(arguments)
    if args.withdraw:
        _write(claims.withdrawn())
        return 0
    if args.older:
        print(environment(older_one(product().commit if is_checkout() else "0" * 40)))
        return 0
    now = product()
    if now.changed and not args.no_write:
        print(
            f"matrix: {', '.join(now.changed)}: in no commit, so there is nothing that the table "
            "could name; commit first, or --no-write",
            file=sys.stderr,
        )
        return 2
    leave_no_process()
    return _matrix(args, now)


def leave_no_process() -> None:
    """End all child processes with this process, also if it is terminated."""
    adopt_orphans()
    atexit.register(end_descendants)  # of a command that is being started, too
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _parser() -> argparse.ArgumentParser:
    known = locked()
    parser = argparse.ArgumentParser(
        prog="tox -e matrix --", description=__doc__.partition("\n\n")[2], allow_abbrev=False
    )
    parser.add_argument("--versions", type=_some(known), default=known, metavar="V,V")
    parser.add_argument("--devices", type=_some(DEVICES), default=DEVICES, metavar="cpu,sim")
    parser.add_argument("--deadline", type=float, default=_DEADLINE_S, help="seconds for one run")
    parser.add_argument("--fresh", action="store_true", help="run also what has been run")
    parser.add_argument("--keep", action="store_true", help="keep environments (2.3 GB each)")
    parser.add_argument("--no-write", action="store_true", help="only print the table")
    parser.add_argument("--work-dir", type=Path, default=ROOT / ".tox", help=argparse.SUPPRESS)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--withdraw", action="store_true", help="take the table back: the code is another now"
    )
    instead.add_argument(
        "--older", action="store_true", help="print the older environment that CI runs"
    )
    return parser


def _some(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return an option type that parses a list of known words."""

    def parse(text: str) -> list[str]:
        asked = text.split(",")
        if unknown := [it for it in asked if it not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: there are {', '.join(known)}")
        return [it for it in known if it in asked]

    return parse


def _matrix(args: argparse.Namespace, now: Product) -> int:
    store = Store(args.work_dir, now)
    for release in args.versions:
        folder = args.work_dir / environment(release)
        was_there = folder.exists()
        for device in args.devices:
            _run(store, release, device, args)
            if _code(product()) != _code(now):
                print("matrix: the checkout has changed meanwhile; start again", file=sys.stderr)
                return 2
        if not was_there and not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    rows = list(_rows(store, locked()))
    print("\n".join(table(rows)))
    if not args.no_write:
        _write(page(rows, locked()))
    asked = [row for row in rows if row.run.release in args.versions]
    return int(not all(row.good for row in asked if row.run.device in args.devices))


def _code(it: Product) -> tuple[str, tuple[str, ...]]:
    return it.tree, it.changed


def _run(store: Store, release: str, device: str, args: argparse.Namespace) -> Run:
    done = None if args.fresh or store.product.changed else store.finished(release, device)
    if done is None:
        print(f"matrix: {release} {device}: {store.file(release, device, 'log')}", flush=True)
        done = store.run(release, device, args.deadline)
    else:
        print(f"matrix: {release} {device}: has been run, {done.date}", flush=True)
    row = _row(store, done)
    print(f"matrix: {row.name}: {row.verdict}, {done.seconds:.0f} s", flush=True)
    return done


def _rows(store: Store, releases: Sequence[str]) -> Iterator[Row]:
    """Yield all stored runs of this code, newest release first, whoever requested them."""
    for release in reversed(releases):
        for device in DEVICES:
            if (done := store.ended(release, device)) is not None:
                yield _row(store, done)


def _row(store: Store, done: Run) -> Row:
    report = store.file(done.release, done.device, "xml")
    return Row(done, junit.read(report) if report.is_file() else [])


def _write(generated: str) -> None:
    page_file = ROOT / claims.PAGE
    page_file.write_text(claims.written(page_file.read_text(), generated))
    print(f"matrix: wrote {claims.PAGE}")
