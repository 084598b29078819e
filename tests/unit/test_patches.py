"""Attributes of other code's objects are replaced and restored in one way."""

from __future__ import annotations

from typing import Any

from pytest_pprank.rank.patches import patch


class Base:
    def f(self) -> str:
        return "base"


class Derived(Base):
    pass


def test_own_attribute_is_put_back() -> None:
    before = vars(Base)["f"]
    undo = patch(Base, "f", lambda _: "patched")
    assert Base().f() == "patched"
    assert undo()
    assert vars(Base)["f"] is before


def test_inherited_one_is_inherited_again() -> None:
    thing = Derived()
    undo = patch(thing, "f", lambda: "patched")
    assert thing.f() == "patched"
    assert undo()
    assert "f" not in vars(thing)
    assert thing.f() == "base"


def test_class_method_stays_one() -> None:
    class Made:
        @classmethod
        def make(cls) -> Any:
            return cls

    before = vars(Made)["make"]
    patch(Made, "make", classmethod(lambda _: None))()
    assert vars(Made)["make"] is before


def test_what_somebody_has_wrapped_is_left_to_them() -> None:
    thing = Derived()
    ours = patch(thing, "f", lambda: "ours")
    theirs = patch(thing, "f", lambda: "theirs")
    assert not ours()
    assert thing.f() == "theirs"
    assert theirs()
    assert thing.f() == "ours"
    assert ours()
    assert not ours()  # the second time there is nothing to do
