"""Decides during collection which tests are ranked, and on which topology each runs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from pytest_pprank._pytest_compat import fixtures_from
from pytest_pprank.checks import chosen_for
from pytest_pprank.devices import choose_device, gpus_of_group
from pytest_pprank.errors import TooFewGpus, UsageError
from pytest_pprank.faults import schedule_for
from pytest_pprank.markers import (
    Instances,
    RankMark,
    Stages,
    read_rank_mark,
    read_server_args,
    sanitizers_asked,
)
from pytest_pprank.options import WITHIN_STAGE, Options, missing_size, options_of
from pytest_pprank.protocol.schedule import Schedule
from pytest_pprank.topology import SIZE_FIXTURE, Another, Shares, Sizes, Topology

if TYPE_CHECKING:
    from pytest_pprank.known.bugs import KnownBug
    from pytest_pprank.sglang.reverts import Revert

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
BATCH_FIXTURES = frozenset({"make_schedule_batch", "schedule_batch", "make_forward_batch"})
"""Fixtures that allocate from a Scheduler whose event loops do not run."""
_PLAN: pytest.StashKey[Plan] = pytest.StashKey()


@dataclass(frozen=True)
class Plan:
    """How to run one ranked test; `known_bugs` are the ones that it shows here."""

    topology: Topology
    fresh: bool
    timeout: float
    sanitizers: tuple[str, ...] = ()
    asked: frozenset[str] = frozenset()
    """The sanitizers that an option or marker requests by name."""
    perturb: Schedule | None = None
    known_bugs: tuple[KnownBug, ...] = ()


REVERTED_HERE = pytest.StashKey[bool]()
"""Set if this process applies reverts, too, for tests that are not ranked (`bench.unranked`)."""


def plan_of(item: pytest.Item) -> Plan | None:
    """Return how to run `item` on ranks; None for a test that is not ranked."""
    return item.stash.get(_PLAN, None)


def limit(item: pytest.Item, seconds: float) -> None:
    """Limit a ranked test to `seconds`, unless its own marker has a timeout."""
    plan = item.stash[_PLAN]
    if read_rank_mark(item).timeout is None:
        item.stash[_PLAN] = replace(plan, timeout=seconds)


def is_ranked(node: pytest.Item | pytest.Collector) -> bool:
    """Return whether a test is ranked: by marker, or by a fixture of ours in its closure."""
    marked = any(node.get_closest_marker(name) is not None for name in ("pprank", "sglang"))
    return marked or bool(fixtures_from(_FIXTURES, node))


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a ranked test one instance per size, ids ``[ppN]`` or ``[prefillN-decodeM]``."""
    definition = metafunc.definition
    if not is_ranked(definition):
        return
    try:
        sizes = _sizes(definition, options_of(metafunc.config))
    except UsageError:
        return  # make_plans reports it once for all tests; an error here would only fail this file
    if sizes:
        metafunc.fixturenames.append(SIZE_FIXTURE)
        metafunc.parametrize(SIZE_FIXTURE, sizes, ids=[each.id for each in sizes], indirect=True)


def make_plans(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """Plan every ranked item and return these items. Raises one UsageError with all problems."""
    problems: dict[str, list[str]] = {}
    unsized: list[str] = []
    ranked: list[pytest.Item] = []
    for item in items:
        if not is_ranked(item) or item.get_closest_marker("skip") is not None:
            continue  # what is skipped in any case needs no ranks
        try:
            plan = _plan(item, options_of(config))
        except TooFewGpus as error:
            if _is_for_larger_machines(item, error):
                item.add_marker(pytest.mark.skip(reason=str(error)))
            else:
                problems.setdefault(str(error), []).append(item.nodeid)
            continue
        except UsageError as error:
            problems.setdefault(str(error), []).append(item.nodeid)
            continue
        if plan is None:
            unsized.append(item.nodeid)
        else:
            item.stash[_PLAN] = plan
            ranked.append(item)
    if unsized and not config.option.collectonly:
        problems[missing_size(unsized)] = []
    if problems:
        raise UsageError("\n".join(itertools.starmap(_with_tests, problems.items())))
    return ranked


def _is_for_larger_machines(item: pytest.Item, error: TooFewGpus) -> bool:
    """Return whether a test says itself that it needs GPUs, or for how many stages.

    Such a test is skipped. An option that asks for more than there is remains an error.
    """
    mark = read_rank_mark(item)
    return bool(mark.device or (error.visible and (mark.pp or mark.prefill)))


def _with_tests(problem: str, tests: list[str]) -> str:
    """Return a problem with the names of its tests in front."""
    if not tests:
        return problem
    more = f" and {len(tests) - 1} other tests" if len(tests) > 2 else ""
    names = tests[:1] if more else tests
    return f"{', '.join(names)}{more}: {problem}"


def _plan(item: pytest.Item, options: Options) -> Plan | None:
    mark = read_rank_mark(item)
    sizes = _size(item, options)
    if sizes is None:
        return None
    used = fixtures_from(_FIXTURES, item)
    _check_drivers(used)
    server_args: Mapping[str, object] | None = None
    if used & SGLANG_FIXTURES or item.get_closest_marker("sglang") is not None:
        server_args = _checked_server_args(item, sizes)
    if sizes.decode:
        _check_roles(used, server_args, sizes)
    sglang = server_args is not None
    wanted = mark.device or options.device
    device, gpus = _placed(wanted, sizes, sglang=sglang, oversubscribe=options.oversubscribe)
    fresh = (mark.fresh and options.fresh != "never") or options.fresh == "test"
    topology = Topology(device=device, server_args=server_args, gpus=gpus, **vars(sizes))
    names = options.sanitize if mark.sanitize is None else mark.sanitize
    by_mark = sanitizers_asked(item)
    asked = options.sanitize_asked if by_mark is None else by_mark
    watching = chosen_for(names, device, sglang=sglang, asked=asked)
    perturb = schedule_for(options.perturb, mark.perturb, device, sglang=sglang)
    plan = Plan(topology, fresh, mark.timeout or options.timeout, watching, asked, perturb)
    return _with_known_bugs(item, plan) if mark.known_bug else plan


def _placed(wanted: str, sizes: Sizes, *, sglang: bool, oversubscribe: bool) -> tuple[str, int]:
    """Return the device of a group, and its number of GPUs (0 on other devices than cuda)."""
    least = sizes.largest_role if oversubscribe else sizes.world_size
    device = choose_device(wanted, least, sglang=sglang, roles=bool(sizes.decode))
    return device, gpus_of_group(device, sizes.world_size)


def _with_known_bugs(item: pytest.Item, plan: Plan) -> Plan:
    from pytest_pprank.known import marks

    bugs = marks.bugs_of(item, plan.topology.device)
    marks.expect(item, bugs)
    perturb = None if marks.keeps_its_order(bugs) else plan.perturb
    return replace(plan, known_bugs=bugs, perturb=perturb)


def _sizes(node: pytest.Item | pytest.Collector, options: Options) -> tuple[Sizes, ...]:
    """Return the sizes that a test is to run at; raises UsageError."""
    mark = read_rank_mark(node)
    within = _within(mark, options)
    if mark.prefill and mark.decode:
        return _each(mark.prefill, mark.decode, within)
    if "disagg" not in fixtures_from(_FIXTURES, node):
        return tuple(
            Sizes(pp, tp=tp, shares=shares)
            for pp, (tp, shares) in itertools.product(mark.pp or options.sizes, within)
        )
    if mark.pp:
        raise UsageError(
            f"@pytest.mark.pprank(pp={mark.pp}): the fixture 'disagg' needs two roles: write "
            "@pytest.mark.pprank(prefill=N, decode=M)"
        )
    prefills, decodes = (
        [(Stages(size),) for size in sizes] for sizes in (options.sizes, options.decodes)
    )
    return _each(prefills, decodes, within)


def _within(mark: RankMark, options: Options) -> list[tuple[int, Shares]]:
    """Return the sizes within a stage: its ranks, and their shares."""
    given = {name: getattr(mark, name) for name in WITHIN_STAGE}
    # a marker that has the ranks of a stage has their shares, too
    others = options.within if given["tp"] is None else dict.fromkeys(WITHIN_STAGE, (1,))
    every = itertools.product(*(given[name] or others[name] for name in WITHIN_STAGE))
    return [(tp, Shares(*shares)) for tp, *shares in every]


def _each(
    prefills: Sequence[Instances],
    decodes: Sequence[Instances],
    within: Sequence[tuple[int, Shares]],
) -> tuple[Sizes, ...]:
    """Combine the sizes of prefill, of decode, and those within a stage where they name none."""
    found: list[Sizes] = []
    for (prefill, *more), (decode, *others), sizes in itertools.product(prefills, decodes, within):
        (own, shares), (other, of_decode) = _of_role(prefill, *sizes), _of_role(decode, *sizes)
        tp = (own, other if other != own else 0)
        beside = [Another("prefill", each.pp, *_of_role(each, *sizes)) for each in more]
        beside += [Another("decode", each.pp, *_of_role(each, *sizes)) for each in others]
        of_decode_alone = of_decode if of_decode != shares else None
        found.append(Sizes(prefill.pp, decode.pp, *tp, tuple(beside), shares, of_decode_alone))
    return tuple(dict.fromkeys(found))


def _of_role(stages: Stages, tp: int, shares: Shares) -> tuple[int, Shares]:
    """Return the sizes within a stage of one role, whose own go before `tp` and `shares`."""
    others = Shares() if stages.tp else shares
    return stages.tp or tp, Shares(stages.dp or others.dp, stages.ep or others.ep)


def _size(item: pytest.Item, options: Options) -> Sizes | None:
    sizes = _sizes(item, options)
    for each in sizes:
        each.check()
    callspec = getattr(item, "callspec", None)
    if callspec is not None and SIZE_FIXTURE in callspec.params:
        size: Sizes = callspec.params[SIZE_FIXTURE]
        if size not in sizes:
            wanted = ", ".join(map(str, sizes))
            raise UsageError(
                f"a mark of one parameter set asks for {wanted}, and the test is collected for "
                f"{size}: mark the test function or its class with pprank(...)"
            )
        return size
    if len(sizes) > 1:
        raise UsageError(
            "this kind of test cannot be parametrized, so it runs at one size, not at "
            f"{', '.join(map(str, sizes))}: mark it with @pytest.mark.pprank(pp=N)"
        )
    return sizes[0] if sizes else None


def _check_roles(used: set[str], server_args: Mapping[str, object] | None, sizes: Sizes) -> None:
    if "engine" in used:
        raise UsageError(
            "the fixture 'engine' is for stages that do prefill and decode (pp=N); with "
            "prefill=N, decode=M use the fixture 'disagg'"
        )
    for prefill, decode in sizes.pairs if server_args is not None else ():
        if decode not in (1, prefill):
            raise UsageError(
                f"prefill={prefill}, decode={decode}: SGLang moves KV to as many stages of "
                f"decode as prefill has, or to one; allowed with prefill={prefill}: "
                + (f"decode=1 or decode={prefill}" if prefill > 1 else "decode=1")
            )
    if server_args is not None and "process_group" in used:
        raise UsageError(
            "the fixture 'process_group' and SGLang in one prefill/decode test: torch has one "
            "default group per process, and here SGLang's, of one role; use SGLang's own groups, "
            "or a test without SGLang"
        )


def _check_drivers(used: set[str]) -> None:
    """Raise UsageError for a test that drives event loops and builds batches by hand.

    Each would report the KV that the other has allocated as a leak.
    """
    drivers, builders = used & {"engine", "disagg"}, used & BATCH_FIXTURES
    if drivers and builders:
        raise UsageError(
            f"the fixtures {' and '.join(map(repr, sorted(drivers | builders)))} in one test: what "
            "they hold of one Scheduler's memory would look like a leak to the other; use "
            f"{min(drivers)!r} for requests through the event loops, {min(builders)!r} for batches "
            "without them"
        )


def _checked_server_args(item: pytest.Item, sizes: Sizes) -> Mapping[str, object]:
    from pytest_pprank.sglang.static import parallel, release
    from pytest_pprank.sglang.static.arguments import args_of_role

    release.check_installed()
    server_args = read_server_args(item)
    for role in sizes.roles:
        changes = args_of_role(server_args, role.name)
        release.check_server_args(changes)
        release.num_layers(changes, role.stages)
        parallel.check_model(changes, role, sizes)
    return server_args


def checked_reverts(specs: Sequence[str]) -> tuple[Revert, ...]:
    """Return the reverts of ``--pprank-revert``. Raises UsageError if one does not fit."""
    if not specs:
        return ()
    from pytest_pprank.sglang import reverts
    from pytest_pprank.sglang.reverts.apply import check
    from pytest_pprank.sglang.static import release

    release.check_installed()
    root = release.package_root()
    assert root is not None  # check_installed has just looked
    resolved = tuple(reverts.resolve(spec) for spec in specs)
    for revert in resolved:
        check(revert, root)
    return resolved


def check_reverts(config: pytest.Config, ranked: list[pytest.Item]) -> None:
    """Raise UsageError for reverts if no selected test uses SGLang on ranks."""
    if config.stash.get(REVERTED_HERE, False):
        return
    if options_of(config).reverts and not any(reaches_sglang(planned(i)) for i in ranked):
        raise UsageError(
            "--pprank-revert is given, but none of the selected tests uses SGLang on ranks (by a "
            "fixture such as 'scheduler' or by @pytest.mark.sglang): nothing would be reverted"
        )


def check_debugged(config: pytest.Config, ranked: list[pytest.Item]) -> None:
    """Raise UsageError for a rank to debug that no selected test has."""
    rank = options_of(config).pdb
    most = max((planned(item).topology.world_size for item in ranked), default=0)
    if rank is not None and ranked and rank >= most:
        raise UsageError(f"--pprank-pdb: {rank}: the selected tests have ranks 0 to {most - 1}")


def reaches_sglang(plan: Plan) -> bool:
    """Return whether the ranks of a test use SGLang, by fixtures or by an import in its file."""
    return plan.topology.server_args is not None or "sglang" in sys.modules


def planned(item: pytest.Item) -> Plan:
    """Return the plan of a ranked test."""
    return item.stash[_PLAN]


def group_by_topology(items: list[pytest.Item]) -> None:
    """Move tests of the same topology together, to the first one's place, keeping their order."""
    places: dict[Topology, int] = {}
    keys: dict[pytest.Item, int] = {}
    for index, item in enumerate(items):
        plan = plan_of(item)
        keys[item] = index if plan is None else places.setdefault(plan.topology, index)
    items.sort(key=lambda item: keys[item])
