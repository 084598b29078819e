"""Which tests are ranked, and on which topology: decided while pytest collects."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pytest_pprank._pytest_compat import fixtures_from
from pytest_pprank.devices import choose_device
from pytest_pprank.errors import UsageError
from pytest_pprank.markers import RankMark, read_rank_mark, read_server_args
from pytest_pprank.options import Options, missing_size, options_of
from pytest_pprank.topology import Topology

SIZE_FIXTURE = "_pprank_size"
_FIXTURES = "pytest_pprank.fixtures"
SGLANG_FIXTURES = frozenset(
    {
        "sglang_args",
        "tiny_model",
        "scheduler",
        "make_req",
        "make_schedule_batch",
        "schedule_batch",
        "make_forward_batch",
        "observe",
    }
)
_PLAN: pytest.StashKey[Plan] = pytest.StashKey()


@dataclass(frozen=True)
class Plan:
    """How one ranked test is to be run."""

    topology: Topology
    fresh: bool
    timeout: float


def plan_of(item: pytest.Item) -> Plan | None:
    """Return how to run `item` on ranks; None for a test that is not ranked."""
    return item.stash.get(_PLAN, None)


def limit(item: pytest.Item, seconds: float) -> None:
    """Give a ranked test at most `seconds`, unless its own marker has said how long."""
    plan = item.stash[_PLAN]
    if read_rank_mark(item).timeout is None:
        item.stash[_PLAN] = replace(plan, timeout=seconds)


def is_ranked(node: pytest.Item | pytest.Collector) -> bool:
    """Say whether a test is ranked: by marker, or by any of our fixtures in its closure."""
    marked = any(node.get_closest_marker(name) is not None for name in ("pprank", "sglang"))
    return marked or bool(fixtures_from(_FIXTURES, node))


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a ranked test one instance per size, ids ``[ppN]``."""
    definition = metafunc.definition
    if not is_ranked(definition):
        return
    try:
        sizes = read_rank_mark(definition).pp or options_of(metafunc.config).sizes
    except UsageError:
        return  # said once for all tests, by make_plans: an error here would only fail this file
    if sizes:
        metafunc.fixturenames.append(SIZE_FIXTURE)
        metafunc.parametrize(SIZE_FIXTURE, sizes, ids=[f"pp{n}" for n in sizes], indirect=True)


def make_plans(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """Plan every ranked item; returns them. Raises UsageError with all that is wrong."""
    problems: dict[str, None] = {}
    unsized: list[str] = []
    ranked: list[pytest.Item] = []
    for item in items:
        if not is_ranked(item):
            continue
        try:
            plan = _plan(item, options_of(config))
        except UsageError as error:
            problems[f"{item.nodeid}: {error}"] = None
            continue
        if plan is None:
            unsized.append(item.nodeid)
        else:
            item.stash[_PLAN] = plan
            ranked.append(item)
    if unsized and not config.option.collectonly:
        problems[missing_size(unsized)] = None
    if problems:
        raise UsageError("\n".join(problems))
    return ranked


def _plan(item: pytest.Item, options: Options) -> Plan | None:
    mark = read_rank_mark(item)
    size = _size(item, mark, options)
    if size is None:
        return None
    server_args: Mapping[str, Any] | None = None
    if (
        fixtures_from(_FIXTURES, item) & SGLANG_FIXTURES
        or item.get_closest_marker("sglang") is not None
    ):
        server_args = _checked_server_args(item, size)
    device = choose_device(mark.device or options.device, size)
    fresh = (mark.fresh and options.fresh != "never") or options.fresh == "test"
    return Plan(Topology(size, device, server_args), fresh, mark.timeout or options.timeout)


def _size(item: pytest.Item, mark: RankMark, options: Options) -> int | None:
    callspec = getattr(item, "callspec", None)
    if callspec is not None and SIZE_FIXTURE in callspec.params:
        size = int(callspec.params[SIZE_FIXTURE])
        if mark.pp is not None and size not in mark.pp:
            raise UsageError(
                f"a mark of one parameter set asks for pp={mark.pp}, and the test is collected for "
                f"pp={size}: mark the test function or its class with pprank(pp=...)"
            )
        return size
    sizes = mark.pp or options.sizes
    if len(sizes) > 1:
        raise UsageError(
            f"this kind of test cannot be parametrized, so it runs at one size, not at {sizes}: "
            "mark it with @pytest.mark.pprank(pp=N)"
        )
    return sizes[0] if sizes else None


def _checked_server_args(item: pytest.Item, stages: int) -> Mapping[str, Any]:
    from pytest_pprank.sglang import static

    static.check_installed()
    server_args = read_server_args(item)
    static.check_server_args(server_args)
    static.num_layers(server_args, stages)
    return server_args


def check_reverts(config: pytest.Config, ranked: list[pytest.Item]) -> None:
    """Raise UsageError for reverts that no selected test could be touched by."""
    if options_of(config).reverts and not any(reaches_sglang(planned(i)) for i in ranked):
        raise UsageError(
            "--pprank-revert is given, but none of the selected tests uses SGLang on ranks (by a "
            "fixture such as 'scheduler' or by @pytest.mark.sglang): nothing would be reverted"
        )


def reaches_sglang(plan: Plan) -> bool:
    """Say whether the ranks of a test have SGLang: by its fixtures, or by an import in its file."""
    return plan.topology.server_args is not None or "sglang" in sys.modules


def planned(item: pytest.Item) -> Plan:
    """Return how to run a test that is known to be ranked."""
    return item.stash[_PLAN]


def group_by_topology(items: list[pytest.Item]) -> None:
    """Move tests of one topology together, at the place of the first of them, keeping order."""
    places: dict[Topology, int] = {}
    keys: dict[pytest.Item, int] = {}
    for index, item in enumerate(items):
        plan = plan_of(item)
        keys[item] = index if plan is None else places.setdefault(plan.topology, index)
    items.sort(key=lambda item: keys[item])
