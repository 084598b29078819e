"""A group that cannot start reports the error of every rank, equal ones once."""

from __future__ import annotations

from pytest_pprank.controller.start import StartErrors


def test_all_ranks_have_told() -> None:
    errors = StartErrors(3)
    assert not errors
    errors.add(2, "no model")
    assert not errors.complete(set())
    errors.add(0, "no port")
    errors.add(1, "no model")
    assert errors.complete(set())
    assert errors.text(lambda _: "unused") == (
        "rank 0 could not start: no port\nranks 1,2 could not start: no model"
    )


def test_ranks_that_are_ready_are_not_waited_for() -> None:
    errors = StartErrors(2)
    errors.add(1, "no")
    assert errors.complete({0})


def test_a_rank_that_dies_after_its_word_adds_nothing() -> None:
    errors = StartErrors(2)
    errors.add(1, "no")
    errors.lost(1)
    errors.lost(0)
    assert errors.complete(set())
    assert errors.text(lambda _: "unused") == "rank 1 could not start: no"


def test_silent_deaths_are_asked_about() -> None:
    errors = StartErrors(2)
    errors.lost(1)
    assert errors.complete({0})
    assert errors.text(lambda lost: f"asked about {lost}") == "asked about [1]"
