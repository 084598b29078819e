"""Reverts for tests that are not ranked: SGLang's own unit tests run in pytest's process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from pytest_pprank.planning import checked_reverts, plan_of
from pytest_pprank.sglang.reverts.apply import apply


def apply_for_unranked(items: Iterable[pytest.Item], specs: Sequence[str]) -> None:
    """Apply reverts in this process if one of these tests is not ranked and its file uses SGLang.

    Only in a measured run: a user's pytest does not import SGLang for it.
    """
    files = {item.path for item in items if plan_of(item) is None}
    if specs and any("sglang" in file.read_text("utf-8", errors="replace") for file in files):
        for revert in checked_reverts(specs):
            apply(revert)
