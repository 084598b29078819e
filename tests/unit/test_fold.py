"""Lines that ranks have in common are shown once, if that is shorter and still readable."""

from __future__ import annotations

import random

import pytest

from pytest_pprank.report.fold import fold_equal_lines

STDOUT = "Captured stdout call"


def fold(*texts: str, title: str = STDOUT) -> list[tuple[str, list[int]]]:
    """Fold the section of each rank; return what is shown of them, in order."""
    sections: dict[tuple[str, str], list[int]] = {}
    for rank, text in enumerate(texts):
        sections.setdefault((title, text), []).append(rank)
    return [(text, list(ranks)) for _, text, ranks in fold_equal_lines(sections)]


def as_it_is(*texts: str) -> list[tuple[str, list[int]]]:
    return [(text, [rank]) for rank, text in enumerate(texts)]


def of_rank(shown: str, rank: int, width: int = 3) -> list[str]:
    """Return the lines of one rank in a folded section."""
    split = [(line[:width].strip(), line[width + 3 :]) for line in shown.splitlines()]
    return [text for who, text in split if who == "all" or str(rank) in who.split(",")]


def test_a_line_of_one_rank_carries_its_rank() -> None:
    common = "one\ntwo\n{}three\nfour\n"
    ((text, ranks),) = fold(common.format("only 0\n"), common.format("only 1\n"))
    assert ranks == [0, 1]
    assert text == "all | one\nall | two\n  0 | only 0\n  1 | only 1\nall | three\nall | four\n"


def test_a_line_of_some_ranks_carries_them() -> None:
    texts = [f"one\ntwo\nthree\n{last}\n" for last in ("x", "y", "x", "z")]
    ((text, ranks),) = fold(*texts)
    assert ranks == [0, 1, 2, 3]
    assert text == "all | one\nall | two\nall | three\n0,2 | x\n  1 | y\n  3 | z\n"


def test_lines_of_logs_that_differ_by_time_and_rank_alone_are_equal() -> None:
    said = "loads\n[{0} {1}] weights\n[{0}] ready, {1}\nwaits\nends\n"
    first = said.format("2026-11-26 05:45:55", "TP0 PP0")
    ((text, _),) = fold(first, said.format("2026-11-26 05:45:56", "TP0 PP1"))
    assert "all | [2026-11-26 05:45:55] weights\n" in text
    assert "  0 | [2026-11-26 05:45:55] ready, TP0 PP0\n" in text
    assert "  1 | [2026-11-26 05:45:56] ready, TP0 PP1\n" in text


def test_a_prefix_that_is_the_same_stays() -> None:
    said = "[2026-11-26 05:45:55 PP0] {}\n"
    first, second = (said.format(x) + said.format("same") * 4 for x in ("a", "b"))
    assert "all | [2026-11-26 05:45:55 PP0] same\n" in fold(first, second)[0][0]


@pytest.mark.parametrize(
    "texts",
    [
        ("from 0\n", "from 1\n"),
        ("one\ntwo\na\n", "one\ntwo\nb\n"),  # too few
        ("\n\n\n\n\na\n", "\n\n\n\n\nb\n"),  # these lines carry no information
        ("", "one\ntwo\nthree\n"),
        # few common lines: two texts are easier to read than one merged text
        tuple("one\ntwo\nthree\n" + "".join(f"{r}{i}\n" for i in range(9)) for r in "ab"),
        ("one\ntwo\nthree\n 10%\r 20%\n", "one\ntwo\nthree\n 10%\r 30%\n"),
    ],
)
def test_what_would_not_be_easier_to_read_stays(texts: tuple[str, ...]) -> None:
    assert fold(*texts) == as_it_is(*texts)


def test_a_text_that_starts_another_stays_in_order() -> None:
    ((text, _),) = fold("one\ntwo\nthree\n", "one\ntwo\nthree\nfour\n")
    assert text == "all | one\nall | two\nall | three\n  1 | four\n"


def test_a_missing_newline_at_the_end_is_no_difference() -> None:
    ((text, _),) = fold("one\ntwo\nthree", "one\ntwo\nthree\nfour")
    assert text == "all | one\nall | two\nall | three\n  1 | four\n"


def test_colours_end_with_their_line() -> None:
    said = "one\ntwo\n\x1b[31mred\nthree\x0b\u2028still three\n\n"
    ((text, _),) = fold(said + "a", said + "b")
    assert text == (
        "all | one\nall | two\nall | \x1b[31mred\x1b[0m\nall | three\x0b\u2028still three\n"
        "all |\n  0 | a\n  1 | b\n"
    )


def test_each_rank_keeps_its_order() -> None:
    dice = random.Random(3)
    shared = [f"line {number}" for number in range(300)]
    texts = []
    for rank in range(4):
        own = [line for line in shared if dice.random() > 0.05]
        for number in range(20):
            own.insert(dice.randrange(len(own)), f"{number} of {rank}")
        texts.append(own)
    ((text, _),) = fold(*("\n".join(own) for own in texts))
    for rank, own in enumerate(texts):
        assert of_rank(text, rank, width=text.index(" | ")) == own


def test_thousands_of_lines_are_folded_and_more_stay() -> None:
    texts = ["".join(f"line {i if i % 100 else rank}\n" for i in range(2000)) for rank in (0, 1)]
    ((text, _),) = fold(*texts)
    assert text.count("\n") == 2020
    many = [text * 2 for text in texts]
    assert fold(*many) == as_it_is(*many)


def test_a_section_of_another_plugin_is_left_to_it() -> None:
    texts = ("one\ntwo\nthree\n{0}\n", "one\ntwo\nthree\n{1}\n")
    assert fold(*texts, title="my data") == as_it_is(*texts)


def test_two_sections_of_one_title_stay() -> None:
    sections = {(STDOUT, "one\ntwo\nthree\na\n"): [0], (STDOUT, "one\ntwo\nthree\nb\n"): [0, 1]}
    assert [text for _, text, _ in fold_equal_lines(sections)] == [text for _, text in sections]


def test_a_folded_section_comes_where_the_first_one_was() -> None:
    said = "one\ntwo\nthree\n{}\n"
    sections = {
        (STDOUT, said.format(0)): [0],
        ("Captured log call", "x"): [0, 1],
        (STDOUT, said.format(1)): [1],
    }
    assert [title for title, _, _ in fold_equal_lines(sections)] == [STDOUT, "Captured log call"]
