"""What a rank may contribute to a meeting."""

from __future__ import annotations

import pickle

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.rank.portable import pickled


def test_values_arrive_as_they_were() -> None:
    value = {"a": [1, (2.5, None)], "b": b"bytes"}
    assert pickle.loads(pickled(value, "gather")) == value


def test_who_brings_what_cannot_be_sent_is_told() -> None:
    with pytest.raises(UsageError, match=r"^gather: builtins.list cannot be sent to the other"):
        pickled([lambda: None], "gather")
