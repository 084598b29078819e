"""The table of stock tests that hold with DP ranks, and what becomes of the others."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pprank.suite import conftest
from pytest_pprank.topology import SIZE_FIXTURE, Shares, Sizes

SUITE = Path(conftest.__file__).parent


@pytest.mark.parametrize("name", conftest.HOLDS)
def test_table_names_tests_that_are_there(name: str) -> None:
    text = (SUITE / f"{name}.py").read_text(encoding="utf-8")
    assert conftest.HOLDS[name] <= {*re.findall(r"def (test_\w+)", text)}


def _item(file: str, name: str, groups: int, **mark: object) -> Any:
    marks = [pytest.mark.pprank(**mark).mark] if mark else []
    added: list[pytest.MarkDecorator] = []
    return SimpleNamespace(
        path=SUITE / f"{file}.py",
        name=f"{name}[pp2]",
        originalname=name,
        callspec=SimpleNamespace(params={SIZE_FIXTURE: Sizes(2, tp=2, shares=Shares(dp=groups))}),
        iter_markers=lambda _: iter(marks),
        add_marker=added.append,
        added=added,
    )


@pytest.mark.parametrize(
    ("item", "skipped"),
    [
        (_item("test_generate", "test_one_request", 2), False),
        (_item("test_generate", "test_prefix_that_is_cached", 2), True),
        (_item("test_generate", "test_prefix_that_is_cached", 1), False),
        (_item("test_outputs", "test_any", 2), True),
        (_item("test_outputs", "test_any", 2, tp=2, dp=2), False),
        (
            _item("test_outputs", "test_any", 2, prefill={"pp": 1, "tp": 2, "dp": 2}, decode=1),
            False,
        ),
        (_item("test_outputs", "test_any", 2, prefill=2, decode=1), True),
    ],
    ids=["holds", "excepted", "one DP rank", "other file", "marker", "role", "roles by option"],
)
def test_what_does_not_hold_is_skipped(item: Any, skipped: bool) -> None:
    conftest.pytest_collection_modifyitems([item])
    reasons = [mark.mark.kwargs["reason"] for mark in item.added]
    assert reasons == ([conftest.REASON] if skipped else [])
