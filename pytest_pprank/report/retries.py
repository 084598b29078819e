"""Keeps SGLang's runner of tests from running a file with a red ranked test once more.

The runner starts each file as a program (``python3 FILE -f``) and looks for words in the output of
one that failed. Some words stand for faults of the machine or for numbers that vary, and the file
is run again, also after any AssertionError; ``RuntimeError`` is one that forbids it. A race that
shows in one run of two would pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import pytest

from pytest_pprank.report.again import command_line
from pytest_pprank.report.verdict import PROPERTY

_LINE = (
    "pprank: RuntimeError: {count} failed; SGLang's runner must not run this file again, as a race "
    "may pass the second time"
)


def line_for_runner(config: pytest.Config, stats: Mapping[str, Sequence[object]]) -> str:
    """Return the line that forbids it; empty if no ranked test failed, or in another run.

    `stats`: the reports of pytest's terminal reporter by category.
    """
    failed = _ranked_tests([*stats.get("failed", ()), *stats.get("error", ())])
    if not failed or not _begun_by_a_test_file(config):
        return ""
    count = f"{len(failed)} ranked test{'s' * (len(failed) != 1)}"
    return _LINE.format(count=count)


def _ranked_tests(reports: Iterable[object]) -> set[str]:
    return {
        report.nodeid
        for report in reports
        if isinstance(report, pytest.TestReport) and PROPERTY in dict(report.user_properties)
    }


def _begun_by_a_test_file(config: pytest.Config) -> bool:
    """Return whether the program is one of the files that it asks pytest to run."""
    program = os.path.realpath(command_line(config)[0])
    named = {str(arg).partition("::")[0] for arg in config.invocation_params.args}
    return program.endswith(".py") and program in map(os.path.realpath, named)
