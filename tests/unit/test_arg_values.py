"""Values of server args against SGLang's annotations, in each form that these have had."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pytest_pprank.sglang.static.arg_values import misfit


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("int", 3),
        ("float", 1),
        ("str", "x"),
        ("str", Path("x")),
        ("bool", False),
        ("Optional[int]", None),
        ("int | None", None),
        ("A[Optional[int], 'help']", 4),
        ("A[str, Arg(help='x', choices=['a', 'b'])]", "a"),
        ("A[str, Arg(help='x', choices=NAMES)]", "what SGLang decides"),
        ("Literal['a', 'b']", "b"),
        ("Optional[Literal['a']]", None),
        ("Union[str, Dict[str, int]]", {"a": 1}),
        ("List[int]", [1]),
        ("List[int]", (1,)),
        ("Optional[CudaGraphConfig]", object()),
    ],
)
def test_what_fits(annotation: str, value: object) -> None:
    assert misfit(ast.parse(annotation, mode="eval").body, value) == ""


@pytest.mark.parametrize(
    ("annotation", "value", "allowed"),
    [
        ("int", "lots", "an int"),
        ("int", True, "an int"),
        ("bool", 1, "a bool"),
        ("float", "0.5", "a float"),
        ("str", 4, "a str"),
        ("A[Optional[int], 'help']", "4", "an int or None"),
        ("A[str, Arg(help='x', choices=['a', 'b'])]", "c", "one of 'a', 'b'"),
        ("A[Optional[str], Arg(choices=['a'])]", "c", "one of 'a'"),
        ("Literal['a', 'b']", "c", "'a' or 'b'"),
        ("Literal[1, 2]", True, "1 or 2"),
        ("Optional[List[int]]", 3, "a list or None"),
        ("str | dict", 3, "a str or a dict"),
    ],
)
def test_what_does_not(annotation: str, value: str | bool | int, allowed: str) -> None:
    assert misfit(ast.parse(annotation, mode="eval").body, value) == allowed
