"""Which test a worker group is to run next."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pytest_pprank.controller.group import WorkerGroup
from pytest_pprank.planning import Plan, plan_of
from pytest_pprank.protocol.items import item_key
from pytest_pprank.protocol.messages import ItemKey


def following(after: Iterable[pytest.Item], plan: Plan, group: WorkerGroup) -> ItemKey | None:
    """Return the first test in `after` that `group` is to run after one of `plan`; None if none is.

    Plain tests are skipped. xdist has its own order and announces only one test ahead, so tests
    after that one are a guess. A wrong guess keeps a group that is not used, which costs nothing.
    """
    for item in after:
        next_plan = plan_of(item)
        if next_plan is None or lacking(group, item_key(item)):
            continue
        same = next_plan.topology == plan.topology and not next_plan.fresh
        return item_key(item) if same else None
    return None


def lacking(group: WorkerGroup, key: ItemKey) -> dict[int, str]:
    """Return the ranks that lack a test, with the reasons."""
    return {rank: peer.missing[key] for rank, peer in group.ranks.items() if key in peer.missing}
