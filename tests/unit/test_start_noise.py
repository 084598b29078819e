"""Lines of SGLang's start that a failure does not show."""

from __future__ import annotations

import pytest

from pytest_pprank.sglang.static.start_noise import without_noise

NOISE = """\
WARNING: Logging before InitGoogleLogging() is written to STDERR
E1127 21:44:55.333585  1005 transfer_metadata.cpp:1098] Local segment descriptor not found
"""


def test_nothing_is_left_of_noise() -> None:
    assert without_noise(NOISE) == ""


@pytest.mark.parametrize(
    "line",
    [
        "E1127 21:44:55.333585  1005 transfer_metadata.cpp:1098] Segment descriptor of a peer lost",
        "E1127 21:44:55.333585  1005 rdma_context.cpp:1] Local segment descriptor not found: why",
        "RuntimeError: Local segment descriptor not found",
        "",
    ],
)
def test_any_other_line_is_kept(line: str) -> None:
    assert without_noise(f"{NOISE}{line}\n{NOISE}after") == f"{line}\nafter"
