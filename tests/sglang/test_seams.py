"""Helpers for SGLang's changing signatures."""

from __future__ import annotations

import pytest

from pytest_pprank.errors import SeamMissing
from pytest_pprank.sglang.compat.seams import fill, need, takes


def short(server_args: object, port_args: object) -> None: ...


def long(
    server_args: object, port_args: object, gpu_id: int, dp_rank: int | None = None
) -> None: ...


KNOWN = {"server_args": "s", "port_args": "p", "gpu_id": 1}


def test_fill_takes_what_the_signature_asks_for() -> None:
    assert fill(short, KNOWN) == {"server_args": "s", "port_args": "p"}
    assert fill(long, KNOWN) == KNOWN


def test_fill_names_what_it_does_not_know() -> None:
    with pytest.raises(SeamMissing, match=r"SGLang .*long requires 'gpu_id'"):
        fill(long, {"server_args": "s", "port_args": "p"})


def test_need_names_version_and_attribute() -> None:
    assert need("text", "upper")() == "TEXT"
    with pytest.raises(SeamMissing, match=r"SGLang .* has no attribute 'gone' on str"):
        need("text", "gone")


def test_takes() -> None:
    assert takes(long, "gpu_id")
    assert not takes(short, "gpu_id")
