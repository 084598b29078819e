"""Marks tests that show a known bug as expected failures in the releases that have it."""

from __future__ import annotations

import pytest

from pytest_pprank.known.bugs import FILE, KnownBug, bugs_named
from pytest_pprank.markers import read_rank_mark
from pytest_pprank.sglang.static.release import sglang_version
from pytest_pprank.topology import SIZE_FIXTURE, Sizes


def bugs_of(item: pytest.Item, device: str) -> tuple[KnownBug, ...]:
    """Return the bugs that a test shows with the installed SGLang on that device (``cuda:1``)."""
    version, kind, stages = sglang_version(), device.partition(":")[0], _stages(item)
    named = bugs_named(read_rank_mark(item).known_bug)
    return tuple(b for b in named if b.affects(version) and b.shows_on(kind, stages))


def _stages(item: pytest.Item) -> int:
    """Return the number of pipeline stages of a test, those of prefill if it has roles."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    size: Sizes | None = params.get(SIZE_FIXTURE)
    return 1 if size is None else size.pp


def expect(item: pytest.Item, bugs: tuple[KnownBug, ...]) -> None:
    """Mark a test as expected to fail by these bugs, except those that should make it red.

    All of them share one mark, because pytest evaluates only the first one.
    """
    expected = [bug for bug in bugs if not bug.red]
    if expected:
        mark = pytest.mark.xfail(
            reason="; ".join(bug.summary for bug in expected),
            strict=any(bug.strict for bug in expected),
            raises=tuple(kind for bug in expected for kind in expected_by(bug)),
        )
        item.add_marker(mark, append=False)


def keeps_its_order(bugs: tuple[KnownBug, ...]) -> bool:
    """Return whether a test shows a bug by an order of events that a perturbation could change."""
    return any(bug.strict and not bug.red for bug in bugs)


def mended(bug: KnownBug) -> str:
    """Return the message for a bug that did not show where it was expected."""
    return (
        f"known bug {bug.id} did not show in SGLang {sglang_version()}: mended in this version: "
        f"move its upper bound in {FILE}"
    )


def expected_by(bug: KnownBug) -> tuple[type, ...]:
    """Return the value for ``xfail(raises=...)``: a class that matches this bug's exceptions.

    Empty if a sanitizer's finding or a verdict shows the bug, since there is no exception then:
    `report.sanitizers` and `report.known` decide.
    """
    if bug.sanitizer or bug.verdict:
        return ()
    return (_Expected(bug.raises, (Exception,), {"says": bug.says}),)


class _Expected(type):
    """A class whose instances are the exceptions with its name (or a base class's) and its words.

    It matches by name, because the controller creates it, too, and cannot import modules that need
    torch.
    """

    says: str

    def __instancecheck__(cls, value: object) -> bool:
        names = {each.__name__ for each in type(value).__mro__}
        return cls.__name__ in names and cls.says in str(value)
