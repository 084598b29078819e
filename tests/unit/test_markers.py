"""The markers of a test: merged from the closest outwards, and refused if they make no sense."""

from __future__ import annotations

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.markers import read_rank_mark, read_server_args


@pytest.mark.parametrize("value", ["2", "(2,)", "[2]"])
def test_sizes(pytester: pytest.Pytester, value: str) -> None:
    assert read_rank_mark(_marked(pytester, f"pprank(pp={value})")).pp == (2,)


def _marked(pytester: pytest.Pytester, *marks: str) -> pytest.Item:
    decorators = "\n".join(f"@pytest.mark.{mark}" for mark in marks)
    return pytester.getitems(f"import pytest\n{decorators}\ndef test_func(): pass\n")[0]


def test_closest_marker_wins(pytester: pytest.Pytester) -> None:
    node = _marked(pytester, "pprank(pp=4, timeout=3)", "pprank(pp=2, fresh=True)")
    mark = read_rank_mark(node)  # for pytest the lower of two decorators is the closer one
    assert (mark.pp, mark.timeout, mark.fresh) == ((2,), 3.0, True)


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("pprank(p=2)", ["'p'", "pp"]),
        ("pprank(timout=2)", ["'timout'", "did you mean 'timeout'"]),
        ("pprank(2)", ["pp=2"]),
        ("pprank(pp=0)", ["pp=0", "from 1 up"]),
        ("pprank(pp=True)", ["pp=True"]),
        ("pprank(pp='two')", ["two"]),
        ("pprank(pp=())", ["pp=()"]),
        ("pprank(device='tpu')", ["device='tpu'", "cpu"]),
        ("pprank(fresh=1)", ["fresh=1", "True and False"]),
        ("pprank(timeout=0)", ["timeout=0", "above 0"]),
        ("pprank(timeout='1')", ["timeout='1'"]),
    ],
)
def test_nonsense_is_named(pytester: pytest.Pytester, mark: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as e:
        read_rank_mark(_marked(pytester, mark))
    for word in words:
        assert word in str(e.value)


def test_server_args_merge(pytester: pytest.Pytester) -> None:
    node = _marked(pytester, "sglang(page_size=2)", "sglang(page_size=1, random_seed=3)")
    assert read_server_args(node) == {"page_size": 1, "random_seed": 3}


def test_server_args_take_keywords_only(pytester: pytest.Pytester) -> None:
    with pytest.raises(UsageError, match="by keyword"):
        read_server_args(_marked(pytester, "sglang('page_size')"))
