"""Tables that still name a request or a room (sglang.stage.leftovers), on made-up objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import pytest

from pytest_pprank.sglang.stage.leftovers import Walk


def sglangs(name: str, **attributes: object) -> object:
    """Return an object of a class that looks like one of SGLang's."""
    made = type(name, (), {"__module__": "sglang.srt.made_up"})()
    vars(made).update(attributes)
    return made


REQ = sglangs("Req", rid="a")
INNER = sglangs("Queue", reqs=[REQ])


def found(names: Iterable[str | int], **attributes: object) -> set[tuple[str, str]]:
    walk = Walk(names)
    walk.into(sglangs("Scheduler", **attributes), "it")
    return walk.found


@pytest.mark.parametrize(
    "held",
    [
        {"a": 1},
        {1: "a"},
        ["a"],
        ("x", ["a"]),
        {"a"},
        deque(["a"]),
        "a",
        REQ,
        [REQ],
        {1: REQ},
        sglangs("Queue", table=[REQ]),
        {3: {4: {"a"}}},
    ],
)
def test_request(held: object) -> None:
    ((path, named),) = found(["a"], table=held)
    assert path.startswith("it.table")
    assert named == "a"


@pytest.mark.parametrize("held", [{"ab": 1}, ["b"], sglangs("Req", rid="b"), 7, None, b"a"])
def test_other_requests(held: object) -> None:
    assert not found(["a"], table=held)


@pytest.mark.parametrize(
    "held", [{1001: 1}, {1001}, {"x": {1001}}, [sglangs("Chunk", bootstrap_room=1001)]]
)
def test_room(held: object) -> None:
    ((_, named),) = found([1001], table=held)
    assert named == "1001"


@pytest.mark.parametrize("held", [{1: 1001}, [1001], 1001, sglangs("Args", port=1001)])
def test_numbers_that_need_not_be_rooms(held: object) -> None:
    assert not found([1001], table=held)


def test_what_is_not_looked_at() -> None:
    batch = sglangs("ScheduleBatch", reqs=["a"])
    other = type("Other", (), {})()
    other.reqs = ["a"]
    assert not found(["a", 5], batch=batch, other=other, _staging_outstanding={5: 0})


def test_objects_with_slots_and_cycles() -> None:
    kind = type("Slotted", (), {"__module__": "sglang.made_up", "__slots__": ("reqs", "empty")})
    slotted = kind()
    slotted.reqs = [slotted, "a"]
    assert found(["a"], one=slotted, two=slotted) == {("it.two.reqs", "a")}
