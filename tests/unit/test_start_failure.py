"""The error if SGLang does not start, for errors from a file that stands for SGLang's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_pprank.sglang.stage import start_failure
from pytest_pprank.topology import Role, Shares

SOURCE = """
def refuse(words):
    raise ValueError(words)
def call(function):
    function()
"""


@pytest.fixture
def sglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., None]]:
    monkeypatch.setattr(start_failure, "package_root", lambda: tmp_path)
    file = tmp_path / "args.py"
    file.write_text(SOURCE)
    names: dict[str, Callable[..., None]] = {}
    exec(compile(SOURCE, str(file), "exec"), names)
    return names


def message(
    function: Callable[..., object],
    *args: object,
    role: str = "pp",
    stage: tuple[int, Shares] = (1, Shares()),
    **changes: object,
) -> str:
    try:
        function(*args)
    except Exception as error:
        return str(start_failure.start_failed(error, changes, Role(role, 0, 2, *stage)))
    raise AssertionError("nothing was raised")


def test_its_sentence_the_marker_and_its_line(
    sglang: dict[str, Callable[..., None]], tmp_path: Path
) -> None:
    assert message(sglang["refuse"], "no good", page_size=0, dtype="half") == (
        "SGLang does not start with these server args: no good\n"
        "  @pytest.mark.sglang(page_size=0, dtype='half')\n"
        f"  ValueError, raised at {tmp_path}/args.py:3 in refuse:\n"
        "    raise ValueError(words)"
    )


def test_error_of_a_library_names_the_line_of_sglang_that_called_it(
    sglang: dict[str, Callable[..., None]], tmp_path: Path
) -> None:
    def library() -> None:
        raise OSError

    assert message(sglang["call"], library, role="decode") == (
        "SGLang does not start with these server args: OSError without a message\n"
        "  the defaults (on the stages of decode)\n"
        f"  OSError, raised in a call at {tmp_path}/args.py:5 in call:\n"
        "    function()"
    )


@pytest.mark.usefixtures("sglang")
def test_error_from_elsewhere() -> None:
    assert message(int, "x").endswith("\n  ValueError, raised outside SGLang")


@pytest.mark.parametrize(
    ("role", "tp", "shares", "line"),
    [
        ("pp", 2, Shares(), "  --pp-size 2 --tp-size 2, or @pytest.mark.pprank(pp=2, tp=2)"),
        (
            "pp",
            4,
            Shares(2, 4),
            "  --pp-size 2 --tp-size 4 --dp-size 2 --ep-size 4, "
            "or @pytest.mark.pprank(pp=2, tp=4, dp=2, ep=4)",
        ),
        (
            "decode",
            2,
            Shares(2),
            "  --pp-size 2 --tp-size 2 --dp-size 2, "
            "or @pytest.mark.pprank(pp=2, tp=2, dp=2): the sizes of decode",
        ),
    ],
)
def test_sizes_within_a_stage(
    sglang: dict[str, Callable[..., None]], role: str, tp: int, shares: Shares, line: str
) -> None:
    said = message(sglang["refuse"], "no good", role=role, stage=(tp, shares))
    assert said.splitlines()[2] == line
