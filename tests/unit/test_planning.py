"""Which tests are ranked, on which topology, and in which order they run."""

from __future__ import annotations

import pytest

from pytest_pprank import devices
from pytest_pprank.errors import UsageError
from pytest_pprank.planning import Plan, group_by_topology, make_plans, plan_of
from pytest_pprank.sglang.static.release import sglang_version
from pytest_pprank.topology import Sizes, Topology

SOURCE = """
import pytest

def test_plain(): pass

def test_fixture(pprank): pass

@pytest.fixture
def mine(process_group): pass

def test_indirect(mine): pass

@pytest.mark.pprank(pp=3)
def test_marked(): pass

@pytest.mark.parametrize("x", "ab")
def test_param(pprank, x): pass
"""


def collect(pytester: pytest.Pytester, *args: str, source: str = SOURCE) -> list[pytest.Item]:
    path = pytester.makepyfile(source)
    items, _ = pytester.inline_genitems(path, "--pprank-device=cpu", *args)
    return items


def planned(item: pytest.Item) -> Plan:
    plan = plan_of(item)
    assert plan
    return plan


def test_ids_and_sizes(pytester: pytest.Pytester) -> None:
    items = collect(pytester, "--pp-size=2,4")
    assert [item.name for item in items] == [
        "test_plain",
        "test_fixture[pp2]",
        "test_fixture[pp4]",
        "test_indirect[pp2]",
        "test_indirect[pp4]",
        "test_marked[pp3]",
        "test_param[a-pp2]",
        "test_param[a-pp4]",
        "test_param[b-pp2]",
        "test_param[b-pp4]",
    ]
    ranked = make_plans(items[0].config, items)
    assert len(ranked) == len(items) - 1
    assert plan_of(items[0]) is None
    assert planned(items[2]).topology == Topology(4, "cpu")


def test_tests_of_one_topology_run_together_in_the_users_order(pytester: pytest.Pytester) -> None:
    items = collect(pytester, "--pp-size=2,4")
    make_plans(items[0].config, items)
    group_by_topology(items)
    assert [item.name for item in items] == [
        "test_plain",
        "test_fixture[pp2]",
        "test_indirect[pp2]",
        "test_param[a-pp2]",
        "test_param[b-pp2]",
        "test_fixture[pp4]",
        "test_indirect[pp4]",
        "test_param[a-pp4]",
        "test_param[b-pp4]",
        "test_marked[pp3]",
    ]


def test_no_size_says_both_ways_of_giving_one(pytester: pytest.Pytester) -> None:
    items = collect(pytester)
    items[0].config.option.collectonly = False  # listing tests needs no size
    with pytest.raises(UsageError) as e:
        make_plans(items[0].config, items)
    for words in ("--pp-size N", "@pytest.mark.pprank(pp=N)", "pp_size = N", "test_fixture"):
        assert words in str(e.value)
    assert "test_marked" not in str(e.value)


def test_a_test_that_cannot_be_parametrized_runs_at_one_size(pytester: pytest.Pytester) -> None:
    source = """
    import pytest, unittest
    @pytest.mark.pprank
    class TestIt(unittest.TestCase):
        def test_one(self): pass
    """
    items = collect(pytester, "--pp-size=2", source=source)
    make_plans(items[0].config, items)
    assert planned(items[0]).topology.pp == 2
    items = collect(pytester, "--pp-size=2,4", source=source)
    with pytest.raises(UsageError, match=r"cannot be parametrized"):
        make_plans(items[0].config, items)


def test_more_gpus_than_there_are(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pytester.makepyfile("def test_it(pprank): pass")
    result = pytester.runpytest_inprocess("--pp-size=2", "--pprank-device=cuda")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *: device cuda: 2 stages need 2 GPUs, 0 visible here*"])


def test_tests_for_more_gpus_than_there_are(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says itself that it needs more is skipped, unless there is no GPU at all."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.pprank(pp=3)
        def test_three(pprank): pass
        @pytest.mark.pprank(prefill=1, decode=2)
        def test_roles(pprank): pass
        @pytest.mark.pprank(pp=3, device="cuda")
        def test_cuda(pprank): pass
        @pytest.mark.pprank(device="cuda")
        def test_cuda_of_any_size(pprank): pass
        """
    )
    asked = "--pprank-device=cuda"
    monkeypatch.setattr(devices, "visible_gpus", lambda: (devices.Gpu("GPU-1", "0"),) * 2)
    result = pytester.runpytest_inprocess(asked, "--pp-size=3", "-rs")
    result.assert_outcomes(skipped=4)
    result.stdout.fnmatch_lines(["SKIPPED * device cuda: 3 stages need 3 GPUs, 2 visible here*"])
    monkeypatch.setattr(devices, "visible_gpus", lambda: ())
    result = pytester.runpytest_inprocess("-k", "cuda", "--pp-size=3", "-rs")
    result.assert_outcomes(skipped=2, deselected=2)
    result = pytester.runpytest_inprocess(asked, "--pp-size=3")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_three*3 stages need 3 GPUs, 0 visible here*"])


def test_server_args_are_part_of_the_topology() -> None:
    plain, defaults = Topology(2, "cpu"), Topology(2, "cpu", {})
    page2, page2_again = Topology(2, "cpu", {"page_size": 2}), Topology(2, "cpu", {"page_size": 2})
    assert len({plain, defaults, page2, page2_again}) == 3
    assert str(page2) == "pp=2 device=cpu sglang(page_size=2)"


ROLES = """
import pytest

def test_both(disagg): pass

@pytest.mark.pprank(prefill=1, decode=(1, 2))
def test_marked(pprank): pass
"""


def wants_sglang() -> None:
    if sglang_version() is None:
        pytest.skip("server args are looked up in the installed SGLang")


def test_sizes_of_prefill_and_decode(pytester: pytest.Pytester) -> None:
    items = collect(pytester, "--pp-size=2", "--pprank-decode=1,2", source=ROLES)
    assert [item.name for item in items] == [
        "test_both[prefill2-decode1]",
        "test_both[prefill2-decode2]",
        "test_marked[prefill1-decode1]",
        "test_marked[prefill1-decode2]",
    ]
    wants_sglang()
    make_plans(items[0].config, items)
    topology = planned(items[1]).topology
    assert (topology.world_size, topology.sizes) == (4, Sizes(2, 2))
    assert [(r.name, r.first, r.stages) for r in topology.sizes.roles] == [
        ("prefill", 0, 2),
        ("decode", 2, 2),
    ]
    assert str(topology) == "prefill=2 decode=2 device=cpu"


SHAPES = """
import pytest

def test_plain(pprank): pass

@pytest.mark.pprank(pp=1, tp=(1, 2))
def test_marked(pprank): pass

@pytest.mark.pprank(prefill={"pp": 2, "tp": 1}, decode={"pp": 1, "tp": 2})
def test_unequal(pprank): pass

@pytest.mark.pprank(prefill=({"pp": 2}, 1), decode=1)
def test_several(pprank): pass
"""


def test_several_ranks_of_a_stage(pytester: pytest.Pytester) -> None:
    items = collect(pytester, "--pp-size=2", "--tp-size=2", source=SHAPES)
    assert [item.name for item in items] == [
        "test_plain[pp2-tp2]",
        "test_marked[pp1]",
        "test_marked[pp1-tp2]",
        "test_unequal[prefill2-tp1-decode1-tp2]",
        "test_several[prefill2-decode1-tp2]",
        "test_several[prefill1-decode1-tp2]",
    ]
    make_plans(items[0].config, items)
    sizes = planned(items[3]).topology.sizes
    assert (sizes.world_size, sizes.largest_role) == (4, 2)
    assert sizes.rank_names == {
        0: "rank 0, prefill stage 0 of 2",
        1: "rank 1, prefill stage 1 of 2",
        2: "rank 2, decode stage 0 of 1, tp 0 of 2",
        3: "rank 3, decode stage 0 of 1, tp 1 of 2",
    }


INSTANCES = """
import pytest

@pytest.mark.pprank(prefill=[2, 2], decode=[1])
def test_prefills(pprank): pass

@pytest.mark.pprank(prefill=2, decode=([1, 1], 2), tp=2)
def test_decodes(pprank): pass

@pytest.mark.pprank(prefill=[{"pp": 2, "tp": 1}, 1], decode=[{"pp": 1, "tp": 2}, 1])
def test_unequal(pprank): pass
"""


def test_several_instances_of_a_role(pytester: pytest.Pytester) -> None:
    items = collect(pytester, source=INSTANCES)
    assert [item.name for item in items] == [
        "test_prefills[prefill2-prefill2-decode1]",
        "test_decodes[prefill2-decode1-decode1-tp2]",
        "test_decodes[prefill2-decode2-tp2]",
        "test_unequal[prefill2-tp1-prefill1-tp1-decode1-tp2-decode1-tp1]",
    ]
    make_plans(items[0].config, items)
    sizes = planned(items[0]).topology.sizes
    assert (sizes.world_size, sizes.largest_role, str(sizes)) == (
        5,
        2,
        "prefill=2 prefill=2 decode=1",
    )
    assert sizes.rank_names == {
        0: "rank 0, prefill 0, stage 0 of 2",
        1: "rank 1, prefill 0, stage 1 of 2",
        2: "rank 2, prefill 1, stage 0 of 2",
        3: "rank 3, prefill 1, stage 1 of 2",
        4: "rank 4, decode stage 0 of 1",
    }
    unequal = planned(items[3]).topology.sizes
    assert [(role.instance, *role.ranks) for role in unequal.roles] == [
        ("prefill 0", 0, 1),
        ("prefill 1", 2),
        ("decode 0", 3, 4),
        ("decode 1", 5),
    ]


SHARES = """
import pytest

def test_plain(pprank): pass

@pytest.mark.pprank(pp=1, tp=4, dp=2, ep=(2, 4))
def test_marked(pprank): pass

@pytest.mark.pprank(pp=1, tp=2)
def test_of_ranks_alone(pprank): pass

@pytest.mark.pprank(prefill={"pp": 2, "tp": 1}, decode={"pp": 1, "tp": 2, "dp": 2})
def test_of_one_role(pprank): pass

@pytest.mark.pprank(prefill=1, decode=1)
def test_of_both(pprank): pass
"""


def test_shares_of_a_stage(pytester: pytest.Pytester) -> None:
    """A marker that has the ranks of a stage has their shares, too: no option adds any."""
    options = ("--pp-size=2", "--tp-size=2", "--dp-size=2", "--ep-size=1,2")
    items = collect(pytester, *options, source=SHARES)
    assert [item.name for item in items] == [
        "test_plain[pp2-tp2-dp2]",
        "test_plain[pp2-tp2-dp2-ep2]",
        "test_marked[pp1-tp4-dp2-ep2]",
        "test_marked[pp1-tp4-dp2-ep4]",
        "test_of_ranks_alone[pp1-tp2]",
        "test_of_one_role[prefill2-tp1-dp1-decode1-tp2-dp2]",
        "test_of_both[prefill1-decode1-tp2-dp2]",
        "test_of_both[prefill1-decode1-tp2-dp2-ep2]",
    ]
    make_plans(items[0].config, items)
    (role,) = planned(items[2]).topology.sizes.roles
    assert (role.attention_tp, role.counts) == (2, (1, 4, 2, 2))
    assert [role.place(rank) for rank in role.ranks] == [
        (0, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 2, 1, 1),
        (0, 3, 1, 1),
    ]
    assert planned(items[5]).topology.sizes.rank_names[3] == (
        "rank 3, decode stage 0 of 1, tp 1 of 2, dp 1 of 2"
    )


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("tp=0, pp=2", "tp=0"),
        ("prefill=[2, 0], decode=1", r"prefill=0\): '0' is not a size; allowed"),
        ("prefill=[2, [2]], decode=1", r"prefill=\[2, \[2\]\]\): .*a list of these for several"),
        ("prefill=[], decode=1", r"prefill=\[\]\): a number of stages"),
        ("prefill=2, decode=()", r"decode=\(\)\): a number of stages"),
        ('prefill=[2, {"tp": 1}], decode=1', "a dict with .pp."),
        ('prefill={"tp": 2}, decode=1', "a dict with .pp."),
        ('prefill={"pp": 2, "dpp": 2}, decode=1', "a number of stages, or a dict"),
        ('prefill={"pp": 2, "dp": 2}, decode=1', "dp=2, tp=1: the ranks of a stage of prefill"),
        ("pp=1, tp=4, dp=3", "cannot form 3 groups that share its requests; .* tp=4: 1, 2, 4"),
        ("pp=1, tp=2, ep=4", "cannot form 4 groups that share its experts; .* tp=2: 1, 2"),
        ('prefill={"pp": 2, "tp": "x"}, decode=1', r"prefill\['tp'\]"),
    ],
)
def test_wrong_sizes_of_stages(pytester: pytest.Pytester, marker: str, words: str) -> None:
    source = f"import pytest\n@pytest.mark.pprank({marker})\ndef test_a(pprank): pass\n"
    items = collect(pytester, source=source)
    with pytest.raises(UsageError, match=words):
        make_plans(items[0].config, items)


@pytest.mark.parametrize(
    ("mark", "fixture", "words"),
    [
        ("pprank(prefill=2)", "pprank", "prefill needs decode, too"),
        ("pprank(decode=2)", "pprank", "decode needs prefill, too"),
        ("pprank(pp=2, prefill=2, decode=1)", "pprank", "not on all three"),
        ("pprank(prefill=0, decode=1)", "pprank", "prefill=0"),
        ("pprank(pp=2)", "disagg", "needs two roles"),
        ("pprank(prefill=2, decode=1)", "engine", "use the fixture 'disagg'"),
        ("sglang(disaggregation_transfer_backend='tcp')", "disagg", "knows .*mooncake"),
        ("sglang(disaggregation_mode='decode')", "disagg", r"pprank\(prefill=N, decode=M\)"),
        ("sglang(decode={'max_tokens': 3})", "disagg", "no server arg 'max_tokens'"),
        ("sglang(decode=3)", "disagg", "a dict of server args"),
        ("pprank(prefill=3, decode=2)", "disagg", "allowed with prefill=3: decode=1 or decode=3"),
        ("pprank(prefill=[2, 1], decode=2)", "disagg", "prefill=1, decode=2: .*: decode=1"),
        ("pprank(prefill=[1, 3], decode=[1, 2])", "disagg", "prefill=1, decode=2: .*: decode=1"),
    ],
)
def test_roles_that_make_no_sense(
    pytester: pytest.Pytester, mark: str, fixture: str, words: str
) -> None:
    if "sglang" in mark or fixture == "engine" or "prefill=3" in mark or "=[" in mark:
        wants_sglang()
    source = f"import pytest\n@pytest.mark.{mark}\ndef test_it({fixture}): pass\n"
    items = collect(pytester, "--pp-size=2", source=source)
    with pytest.raises(UsageError, match=words):
        make_plans(items[0].config, items)
