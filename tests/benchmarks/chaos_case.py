"""A generated test of the chaos run, and the verdict that it must get.

An expected verdict is derived from what a user should see (issue text, README), never from what the
tested code happens to print. Words are regular expressions, so that wording may change as long as
the facts remain: who (ranks), what (kind), where (phase and function), why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

PREAMBLE = '''\
import contextlib, itertools, os, re, signal, socket, subprocess, sys, threading, time
from multiprocessing import shared_memory
from pathlib import Path

import pytest
import torch
import torch.distributed as dist


def first_group(pprank, name):
    """Whether this is the first worker group that comes here: a broken fixture strikes once."""
    here = Path(__file__).parent
    mine = here / f"flag-{name}-{os.getpid()}"
    mine.write_text(str(pprank.workdir))
    with contextlib.suppress(FileExistsError):
        os.link(mine, here / f"flag-{name}")
    return (here / f"flag-{name}").read_text() == str(pprank.workdir)

'''

PASSED, FAILED, ERROR = "passed", "failed", "error"
SKIPPED, XFAILED = "skipped", "xfailed"

STATUS_OF_PHASE = {"setup": ERROR, "call": FAILED, "teardown": ERROR}


@dataclass(frozen=True)
class Expected:
    """What the report of a test must say.

    `status`: the outcome of the whole test. `phase`: the phase that reports it ("" for a test that
    passes). `kinds`: the allowed verdicts, one of which must be given (see chaos_judge.KINDS).
    `culprits`: the ranks that it must name, and name first. Every one of `words` must be in the
    report, none of `absent`; a pair in `words_of` counts only if its kind was the verdict. `limit`:
    the most characters of the whole report, captured output included.
    """

    status: str = PASSED
    phase: str = ""
    kinds: tuple[str, ...] = ()
    culprits: frozenset[int] = frozenset()
    words: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    words_of: tuple[tuple[str, str], ...] = ()
    limit: int = 1_000_000


@dataclass(frozen=True)
class Case:
    """One test with its fixtures (`source`) and its `expected` verdict.

    `fault`: the name of its entry in the catalogue, "" for a healthy test. `alone`: it needs a file
    of its own. `last`: it must be the last test of the run. `after`: a healthy test that runs right
    after it, because the fault's remains could affect it: a broken fixture, a message.
    """

    name: str
    source: str
    expected: Expected
    fault: str = ""
    alone: bool = False
    last: bool = False
    after: Case | None = None


@dataclass(frozen=True)
class Run:
    """The tests of one pytest run, on `world` ranks: file name to its cases, in order."""

    number: int
    world: int
    files: dict[str, list[Case]] = field(default_factory=dict)

    @property
    def cases(self) -> list[tuple[str, Case]]:
        """Return file name and case, in the order in which they run."""
        return [(name, case) for name, cases in self.files.items() for case in cases]


def troubled(
    phase: str,
    kinds: Iterable[str] | str,
    culprits: Iterable[int] = (),
    words: Iterable[str] = (),
    absent: Iterable[str] = (),
) -> Expected:
    """Return the expected verdict of a test that fails in `phase`."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    status = STATUS_OF_PHASE[phase]
    return Expected(status, phase, kinds, frozenset(culprits), tuple(words), tuple(absent))
