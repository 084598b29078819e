"""Several instances of prefill and decode in one test: who is where, and what a call reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pprank import assert_kv_balanced, assert_ranks_agree, assert_tokens_equal_reference
from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.driver.until import EngineStalled
from pytest_pprank.sglang.stage.scheduler import instance_id

if TYPE_CHECKING:
    from pytest_pprank import Disagg, Pprank
    from pytest_pprank.sglang.driver.disagg_side import Side


def settle(disagg: Disagg) -> None:
    disagg.drain()
    assert_tokens_equal_reference(disagg.results.values())
    assert_kv_balanced(disagg.scheduler)


@pytest.mark.pprank(prefill=2, decode=[1, 1])
class TestTwoOfDecode:
    def test_seats(self, disagg: Disagg, pprank: Pprank) -> None:
        seats = [("prefill", 0, 0), ("prefill", 0, 1), ("decode", 0, 0), ("decode", 1, 0)]
        assert (pprank.role, pprank.role_index, pprank.stage) == seats[pprank.rank]
        worlds = [(0, 1), (0, 1), (2,), (3,)]
        assert tuple(pprank.role_ranks) == worlds[pprank.rank]
        args = disagg.scheduler.server_args
        assert (args.disaggregation_mode, args.pp_size) == (pprank.role, pprank.num_stages)
        everyone = pprank.gather((args.dist_init_addr, instance_id(pprank)))
        assert len({address for address, _ in everyone}) == 3
        assert len({name for _, name in everyone}) == 3

    def test_sides(self, disagg: Disagg) -> None:
        rid, other = disagg.submit(30, 3, decode=1), disagg.submit(31, 3)
        settle(disagg)
        assert [side.name for side in disagg.decodes] == ["decode 0", "decode 1"]
        assert disagg.side("decode", 1) is disagg.decodes[1]
        assert disagg.side("decode") is disagg.decode is disagg.decodes[0]
        assert [[*side.results] for side in disagg.decodes] == [[other], [rid]]
        assert [*disagg.prefill.results] == [*disagg.results] == [rid, other]
        assert [view.instance for view in disagg.stages] == [
            "prefill", "prefill", "decode 0", "decode 1"
        ]  # fmt: skip
        assert disagg.stages[-1].place == "decode 1, stage 0"
        assert disagg.state(rid) == {"prefill": ("done", "done"), "decode": ("done",)}
        assert_ranks_agree((disagg.results[rid].token_ids, disagg.stages))

    def test_request_that_waits_for_its_instance(self, disagg: Disagg) -> None:
        rid = disagg.submit(30, 3, to="prefill", decode=1)
        disagg.step(4)
        with pytest.raises(UsageError, match=f"prefill has got '{rid}' already"):
            disagg.forward(rid, to="prefill")
        disagg.forward(rid, to="decode")
        settle(disagg)
        assert [*disagg.decodes[1].results] == [rid]

    def test_control_requests(self, disagg: Disagg) -> None:
        one = disagg.control("flush_cache", role="decode", index=1, wait=True)
        assert one.answer.success
        every = disagg.control("flush_cache", wait=True)
        assert {*every.answers} == {"prefill", "decode 0", "decode 1"}
        with pytest.raises(UsageError, match="sent to prefill and decode 0 and decode 1"):
            every.answer  # noqa: B018

    def test_aborts(self, disagg: Disagg) -> None:
        rids = [disagg.submit(30 + turn, 30, decode=turn % 2) for turn in range(4)]
        disagg.run_until(lambda: all(disagg.results[rid].token_ids for rid in rids))
        disagg.abort(role="decode", index=0)
        disagg.drain()
        ends = [(disagg.results[rid].finish_reason or {})["type"] for rid in rids]
        assert ends == ["abort", "length"] * 2
        rids = [disagg.submit(30 + turn, 30, decode=turn % 2) for turn in range(4)]
        disagg.abort()
        disagg.drain()
        assert {(disagg.results[rid].finish_reason or {})["type"] for rid in rids} == {"abort"}

    def test_instance_that_stands_still(self, disagg: Disagg, pprank: Pprank) -> None:
        disagg.stop("decode", 1)
        disagg.generate([30], 3, decode=0)  # needs the other one only
        rid = disagg.submit(31, 3, decode=1)
        words = r"drain\(\): decode 1 stands still; call disagg.resume\('decode', 1\) first"
        with pytest.raises(UsageError, match=words):
            disagg.drain()
        with pytest.raises(EngineStalled, match=r"decode 1, stage 0, \d+ iterations: stands still"):
            disagg.run_until(lambda: False, max_iterations=2)
        assert sum(pprank.gather(disagg.iterations == 0)) == 1
        with pytest.raises(UsageError, match=r"disagg.stop: decode 1 stands still already"):
            disagg.stop("decode")
        disagg.resume("decode", 1)
        settle(disagg)
        assert disagg.results[rid].finished

    def test_faults_of_one_instance(self, disagg: Disagg, pprank: Pprank) -> None:
        late = disagg.late_poll(role="decode", index=1, iterations=20)
        first, second = disagg.submit(30, 3, decode=0), disagg.submit(31, 3, decode=1)
        disagg.run_until(lambda: disagg.results[first].finished)
        assert not disagg.results[second].token_ids
        settle(disagg)
        assert [bool(hits) for hits in pprank.gather(late.hits)] == [False, False, False, True]

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda d: d.submit(9, decode=2), r"submit: decode=2: .*; allowed: 0 to 1"),
            (lambda d: d.submit(9, prefill=1), r"submit: prefill=1: .*; allowed: 0$"),
            (lambda d: d.stop("decode", 2), r"stop: index=2: .* of decode; allowed: 0 to 1"),
            (lambda d: d.abort(index=1), r"abort: index=1: .* of prefill; allowed: 0$"),
            (lambda d: d.side("decode", True), r"side: index=True"),
            (lambda d: d.late_poll(stages=[1]), r"stages \[1\] of decode 0; there are 0 to 0"),
            (lambda d: d.clock.advance(1, role="decode", index=2), r"index=2; allowed: with role"),
        ],
        ids=["decode", "prefill", "stop", "abort", "side", "fault", "clock"],
    )
    def test_wrong_numbers(self, disagg: Disagg, call: object, words: str) -> None:
        assert callable(call)
        with pytest.raises(UsageError, match=words):
            call(disagg)

    @pytest.mark.pprank(sanitize="-logs")
    def test_one_after_the_other_is_killed(self, disagg: Disagg, pprank: Pprank) -> None:
        disagg.kill("decode", 0)
        disagg.generate([30, 31], 3)  # both by the one that is alive
        assert [len(side.results) for side in disagg.decodes] == [0, 2]
        with pytest.raises(UsageError, match=r"disagg.kill: decode 0 is dead"):
            disagg.kill("decode", 0)
        assert_tokens_equal_reference(disagg.results.values())
        disagg.kill("decode")
        assert pprank.role == "prefill"
        with pytest.raises(UsageError, match=r"disagg.control: decode 0 and decode 1 is dead"):
            disagg.control("flush_cache", role="decode")
        with pytest.raises(UsageError, match="decode 0, decode 1 is dead; one must live"):
            disagg.kill("prefill")
        assert_kv_balanced(disagg.scheduler)


@pytest.mark.pprank(prefill=[2, 2], decode=[2, 2])
class TestEightRanks:
    def test_all_pairs(self, disagg: Disagg, pprank: Pprank) -> None:
        ports = {server.instance: server.port for server in disagg.bootstraps}
        assert len({*ports.values()}) == 2
        own = disagg.scheduler.server_args.disaggregation_bootstrap_port
        assert own == ports.get(pprank.instance, ports["prefill 0"])
        disagg.generate([30, 300, 31, 301], 4)
        sides: tuple[Side, ...] = (*disagg.prefills, *disagg.decodes)
        assert [len(side.results) for side in sides] == [2] * 4
        settle(disagg)

    def test_bootstrap_servers(self, disagg: Disagg) -> None:
        disagg.bootstraps[1].stop()
        assert (disagg.bootstraps[0].up, disagg.bootstraps[1].up) == (True, False)
        disagg.generate([30, 31], 3, prefill=0)
        with pytest.raises(UsageError, match=r"disagg.bootstrap.start: the server runs"):
            disagg.bootstraps[0].start()
        disagg.bootstraps[1].start()
        disagg.generate([30, 31], 3, prefill=1)
        settle(disagg)
