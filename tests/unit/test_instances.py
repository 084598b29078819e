"""Which instances of prefill and decode a call means, and the pairs that take turns."""

from __future__ import annotations

from itertools import product

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver.disagg_instances import Instances
from pytest_pprank.topology import Another, Sizes


def instances(prefills: int, decodes: int) -> tuple[Instances, set[str]]:
    more = [Another("prefill", 2, 1)] * (prefills - 1) + [Another("decode", 1, 1)] * (decodes - 1)
    dead: set[str] = set()
    return Instances(Sizes(2, 1, more=tuple(more)), dead), dead


@pytest.mark.parametrize(("prefills", "decodes"), [*product((1, 2, 3, 4), repeat=2)])
def test_all_pairs_take_turns(prefills: int, decodes: int) -> None:
    own, _ = instances(prefills, decodes)
    turns = [tuple(own.pair(None, None).values()) for _ in range(2 * prefills * decodes)]
    half = prefills * decodes
    assert len({*turns[:half]}) == half
    assert turns[:half] == turns[half:]
    first = turns[: max(prefills, decodes)]
    assert len({one for one, _ in first}) == prefills
    assert len({other for _, other in first}) == decodes


def test_one_instance_each_has_no_number() -> None:
    own, _ = instances(1, 1)
    assert own.pair(None, None) == {"prefill": "prefill", "decode": "decode"}
    assert own.pair(0, 0) == own.pair(None, 0)
    assert own.of(("prefill", "decode"), "abort") == ("prefill", "decode")


def test_others_take_the_turns_that_one_has_had() -> None:
    own, _ = instances(1, 2)
    assert [own.pair(*asked)["decode"][-1] for asked in [(0, 1), (None, 1)]] == ["1", "1"]
    assert [own.pair(None, None)["decode"][-1] for _ in range(4)] == ["0", "0", "0", "1"]


def test_what_is_asked_for_is_kept() -> None:
    own, _ = instances(2, 2)
    assert own.pair(1, 0) == {"prefill": "prefill 1", "decode": "decode 0"}
    found = [own.pair(None, 1) for _ in range(4)]
    assert {pair["decode"] for pair in found} == {"decode 1"}
    assert [pair["prefill"] for pair in found].count("prefill 0") == 2


def test_dead_instances_get_nothing_while_others_live() -> None:
    own, dead = instances(2, 2)
    dead.add("decode 0")
    assert {own.pair(None, None)["decode"] for _ in range(4)} == {"decode 1"}
    assert own.pair(None, 0)["decode"] == "decode 0"
    dead.add("decode 1")
    assert {own.pair(None, None)["decode"] for _ in range(8)} == {"decode 0", "decode 1"}


def test_all_of_a_role_or_one() -> None:
    own, _ = instances(1, 3)
    assert own.of("decode", "kill") == ("decode 0", "decode 1", "decode 2")
    assert own.of("decode", "kill", 2) == ("decode 2",)
    with pytest.raises(UsageError, match=r"disagg.kill: index=3: .* of decode; allowed: 0 to 2"):
        own.of("decode", "kill", 3)
    with pytest.raises(UsageError, match=r"disagg.kill: index=1: .* of prefill; allowed: 0$"):
        own.of(("decode", "prefill"), "kill", 1)
    with pytest.raises(UsageError, match=r"disagg.submit: decode=-1: .* allowed: 0 to 2"):
        own.pair(0, -1)
    with pytest.raises(UsageError, match=r"disagg.kill: role 'both'; allowed: 'prefill', 'decode'"):
        own.of("both", "kill")
