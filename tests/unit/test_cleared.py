"""Which code has cleared a field of a batch, on a class that stands for SGLang's."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from pytest_pprank.sglang.batches.cleared import cleared_by, watch


class Batch:
    def __init__(self) -> None:
        self.ids: Any = [1]
        self.sums: Any = None

    def drop(self) -> None:
        self.ids = self.sums = None


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Batch:
    monkeypatch.setattr(Batch, "__setattr__", object.__setattr__)  # restored after the test
    watch(Batch)
    watch(Batch)  # a second call changes nothing
    return Batch()


def test_a_field_that_held_something(batch: Batch) -> None:
    assert (cleared_by(batch, "ids"), cleared_by(batch, "sums")) == ("", "")
    batch.drop()
    by = r"(Batch\.)?drop \(test_cleared\.py:\d+\), called at test_cleared\.py:\d+"
    assert re.fullmatch(by, cleared_by(batch, "ids"))
    assert cleared_by(batch, "sums") == ""
    assert batch.ids is None


def test_a_field_that_was_filled_again(batch: Batch) -> None:
    batch.drop()
    old = copy.copy(batch)
    batch.ids = [2]
    assert cleared_by(batch, "ids") == ""
    assert "drop" in cleared_by(old, "ids")


def test_a_class_that_does_something_of_its_own() -> None:
    class Own(Batch):
        def __setattr__(self, name: str, value: Any) -> None:
            vars(self)[name] = value

    before = Own.__setattr__
    watch(Own)
    assert Own.__setattr__ is before
