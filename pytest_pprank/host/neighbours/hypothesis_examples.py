"""hypothesis: all ranks run the same examples, and agree on how each of them ended.

What hypothesis does next depends on a seed and on how its examples have ended. So the ranks share
the seed and the example database, meet after every example, and let an example fail on all ranks if
it has failed on one. Then they also shrink it together. What depends on a rank's own clock is
disabled: deadlines of an example, the health check for slow examples, the time limit of shrinking.
"""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

from pytest_pprank.options import options_of
from pytest_pprank.rank.context import current_rank

_STATEFUL = (
    "a stateful test of hypothesis (RuleBasedStateMachine) cannot be ranked: what a rank does next "
    "would depend on that rank alone; use @given"
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, None, None]:
    """Run a property-based test in lockstep with the other ranks."""
    test = getattr(item, "obj", None)
    if "hypothesis" not in sys.modules or not getattr(test, "is_hypothesis_test", False):
        return (yield)
    if not hasattr(test, "hypothesis"):
        pytest.fail(_STATEFUL, pytrace=False)
    from pytest_pprank.host.neighbours.hypothesis_lockstep import Lockstep

    lockstep = Lockstep(test, current_rank(), options_of(item.config).grace)
    lockstep.begin()
    item.obj = lockstep.call
    try:
        return (yield)
    finally:
        item.obj = test
        lockstep.end()
