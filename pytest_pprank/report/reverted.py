"""Summarises a run with a fix taken out: which tests ran the reverted code, and which failed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from pytest_pprank.sglang.reverts import reached

_FILE = "reverts_reached.jsonl"


class RevertReport:
    """Collects from the ranks which tests ran the reverted functions, and summarises it.

    Does nothing in a run without reverts. If the environment already names a file for it
    (`reached.VARIABLE`, as in ``python -m pytest_pprank regressions``), that file is read.
    """

    def __init__(self, described: tuple[str, ...]) -> None:
        self._described = described
        self._given = os.environ.get(reached.VARIABLE)
        self._tests: dict[str, None] = {}

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the variables with which ranks record what they run; all groups share `folder`."""
        if not self._described or self._given:
            return {}
        return {reached.VARIABLE: str(folder / _FILE)}

    def collect(self, folder: Path) -> None:
        """Read what the ranks have recorded so far, before `folder` is removed."""
        if self._described:
            file = Path(self._given) if self._given else folder / _FILE
            self._tests.update(dict.fromkeys(noted.test for noted in reached.read(file)))

    def lines(self, ran: Collection[str], red: Collection[str]) -> Iterator[str]:
        """Yield the summary. `ran`, `red`: node ids of the ranked tests that ran, or failed."""
        if not self._described:
            return
        yield from (f"reverted: {text}" for text in self._described)
        there = [test for test in self._tests if test in ran]
        failed = [test for test in there if test in red]
        if not there:
            yield f"no test came to the reverted code ({len(ran)} ran): this run says nothing"
        elif failed:
            yield (
                f"{len(there)} of {len(ran)} tests came to the reverted code; {len(failed)} of "
                "them went red"
            )
        else:
            yield (
                f"{len(there)} of {len(ran)} tests came to the reverted code; none of them went "
                "red: they do not see what the fix is for"
            )


def red_tests(stats: dict[str, list[pytest.TestReport]]) -> set[str]:
    """Return the node ids of the tests that failed, from the terminal reporter's statistics."""
    return {report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ())}
