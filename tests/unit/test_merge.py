"""N reports of one test become one: who is blamed, what is folded, and when ranks disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_pprank.planning import Plan
from pytest_pprank.report.merge import ReportMerger
from pytest_pprank.report.outcome import TestOutcome
from pytest_pprank.report.verdicts import RankDied, RanksDiverged, Trouble
from pytest_pprank.topology import Topology

Merged = Callable[..., dict[str, Any]]
"""The reports by phase; the type of `longrepr` depends on the outcome."""

PLAN = Plan(Topology(2, "cpu", {}), fresh=False, timeout=1.0)


@pytest.fixture
def merged(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Merged:
    """Run a test in this process once per rank, and merge the reports."""

    # a bytecode cache could not distinguish the files of two ranks
    monkeypatch.setattr("sys.dont_write_bytecode", True)

    def merge(
        *bodies: str,
        troubles: Sequence[Trouble] = (),
        reverted: tuple[str, ...] = (),
        phases: Sequence[str] = ("setup", "call", "teardown"),
        only_rank: int | None = None,
    ) -> dict[str, pytest.TestReport]:
        reports = {}
        for rank, body in enumerate(bodies):
            source = f"import pytest\ndef test_func():\n    rank = {rank}\n    {body}\n"
            path = pytester.makepyfile(test_ranked=source)
            recorder = pytester.inline_run(path)
            own = [c.report for c in recorder.getcalls("pytest_runtest_logreport")]
            (item,) = (c.item for c in recorder.getcalls("pytest_itemcollected"))
            config = item.config
            to_json = config.hook.pytest_report_to_serializable
            reports[rank] = [to_json(config=config, report=r) for r in own if r.when in phases]
        if only_rank is not None:
            reports = {only_rank: reports[only_rank]}
        outcome = TestOutcome(reports=reports, troubles=list(troubles))
        return {r.when: r for r in ReportMerger(config, reverted).merge(item, PLAN, outcome)}

    return merge


def test_all_passed(merged: Merged) -> None:
    reports = merged("pass", "pass")
    assert {when: r.outcome for when, r in reports.items()} == {
        "setup": "passed",
        "call": "passed",
        "teardown": "passed",
    }
    assert reports["call"].nodeid.endswith("::test_func")


@pytest.mark.parametrize("printed", [{}, {1: {"setup": {"stdout": "a"}, "call": {"stderr": "b"}}}])
@pytest.mark.parametrize("reverted", [(), ("a fix",)])
def test_the_short_way_of_what_went_well_tells_the_same(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    printed: dict[int, dict[str, dict[str, str]]],
    reverted: tuple[str],
) -> None:
    (item,) = pytester.getitems("def test_func(): pass")
    reports = {
        rank: [
            {"when": when, "outcome": "passed", "duration": rank + 1, "start": 5 - rank, "stop": 7}
            for when in ("setup", "call", "teardown")
        ]
        for rank in range(2)
    }
    merger = ReportMerger(item.config, reverted)

    def merge(plan: Plan) -> list[dict[str, Any]]:
        outcome = TestOutcome(reports=reports, printed={0: {}, 1: {}, **printed})
        return [vars(report) for report in merger.merge(item, plan, outcome)]

    short = merge(PLAN)
    monkeypatch.setattr("pytest_pprank.report.merge._all_passed", lambda *_: False)
    assert short == merge(PLAN)
    assert [r["duration"] for r in short] == [2, 2, 2]


def test_a_rank_without_a_report_has_not_gone_well(pytester: pytest.Pytester) -> None:
    (item,) = pytester.getitems("def test_func(): pass")
    phase = {"outcome": "passed", "duration": 1, "start": 1, "stop": 2}
    reports = {0: [{"when": w, **phase} for w in ("setup", "call", "teardown")]}
    reports[1] = reports[0][:1]
    merged = ReportMerger(item.config, ()).merge(item, PLAN, TestOutcome(reports=reports))
    assert {r.when: r.outcome for r in merged} == {
        "setup": "passed",
        "call": "failed",
        "teardown": "failed",
    }


def test_one_failed(merged: Merged) -> None:
    call = merged("pass", "assert rank == 0")["call"]
    assert call.outcome == "failed"
    assert call.longrepr.reprcrash.message.startswith("[rank 1] assert 1 == 0")
    assert "failed on rank 1 of 2" in call.longreprtext
    assert ("pprank_verdict", "failed") in call.user_properties


def test_equal_failures_are_folded(merged: Merged) -> None:
    call = merged("assert not 1, f'rank {rank}'", "assert not 1, f'rank {rank}'")["call"]
    assert call.longrepr.reprcrash.message.startswith("[ranks 0,1]")
    assert call.longreprtext.count("AssertionError") == 1 + call.longreprtext.count(": Assertion")


def test_different_failures_are_both_told_and_the_first_comes_first(merged: Merged) -> None:
    call = merged("raise ValueError('one')", "raise KeyError('two')")["call"]
    assert call.longrepr.reprcrash.message.startswith("[rank 0] ValueError")
    assert "rank 1 failed at the same place, with other values" in call.longreprtext
    assert "KeyError" in call.longreprtext


def test_a_consequence_is_not_the_culprit(merged: Merged) -> None:
    peer = "from pytest_pprank.errors import PeerError; raise PeerError('in vain')"
    call = merged(peer, "raise ValueError('boom')")["call"]
    assert call.longrepr.reprcrash.message.startswith("[rank 1] ValueError")
    assert "rank 0 failed as a consequence" in call.longreprtext


@pytest.mark.parametrize("body", ["pytest.skip('no') if rank else None", "pytest.skip('no')"])
def test_skips(merged: Merged, body: str) -> None:
    call = merged(body, body)["call"]
    if "rank" in body:
        assert call.outcome == "failed"
        assert "rank 0 passed" in call.longreprtext
        assert "rank 1 skipped: Skipped: no" in call.longreprtext
    else:
        assert call.outcome == "skipped"
        assert call.longrepr[2] == "Skipped: no"


def test_an_imperative_xfail_on_one_rank_is_a_disagreement(merged: Merged) -> None:
    call = merged("pass", "pytest.xfail('known')")["call"]
    assert call.outcome == "failed"  # rank 0 did not know of it and passed
    assert "rank 1 xfailed: " in call.longreprtext


def test_a_rank_that_reports_nothing_is_a_disagreement(merged: Merged) -> None:
    setup = merged("pass", "pass", phases=("setup",), only_rank=0)["setup"]
    assert setup.outcome == "failed"
    assert "rank 1 reported nothing" in setup.longreprtext


def test_trouble_without_reports(merged: Merged) -> None:
    trouble = RankDied(rank=1, place="call", how="killed by SIGKILL", details=(("T", "details"),))
    call = merged("pass", "pass", troubles=[trouble], phases=("setup",))["call"]
    assert call.outcome == "failed"
    assert call.longrepr.reprcrash.message == "rank died: rank 1 died in call: killed by SIGKILL"
    assert "details" in call.longreprtext
    assert ("pprank_verdict", "rank died") in call.user_properties


def test_a_victim_does_not_hide_the_trouble(merged: Merged) -> None:
    trouble = RankDied(rank=1, place="call", how="killed by SIGKILL")
    peer = "from pytest_pprank.errors import PeerError; raise PeerError('in vain')"
    # a stand-in for a rank without a report of its call: both ranks have only this report
    call = merged(peer, peer, troubles=[trouble], phases=("call",))["call"]
    assert call.longrepr.reprcrash.message.startswith("rank died: rank 1 died")
    assert "ranks 0,1 failed as a consequence" in call.longreprtext


def test_a_failure_comes_before_the_trouble_it_caused(merged: Merged) -> None:
    through = {0: "failed in call"}
    trouble = RanksDiverged(inside={1: "call"}, through=through, seconds=1.0, limit="")
    call = merged("raise ValueError('boom')", "pass", troubles=[trouble])["call"]
    assert call.outcome == "failed"
    assert "ValueError" in call.longrepr.reprcrash.message


def test_reverts_show_in_every_report(merged: Merged) -> None:
    reports = merged("pass", "pass", reverted=("26883: some fix",))
    for report in reports.values():
        assert ("pprank", "reverted: 26883: some fix") in report.sections
        assert ("pprank_revert", "26883: some fix") in report.user_properties


def test_output_is_kept_per_rank(merged: Merged) -> None:
    call = merged("print('from', rank)", "print('from', rank)")["call"]
    assert call.sections == [
        ("Captured stdout call (rank 0)", "from 0\n"),
        ("Captured stdout call (rank 1)", "from 1\n"),
    ]
    assert call.capstdout == "from 0\nfrom 1\n"


def test_equal_output_is_told_once(merged: Merged) -> None:
    call = merged("print('the same')", "print('the same')")["call"]
    assert call.sections == [("Captured stdout call (ranks 0,1)", "the same\n")]


@pytest.mark.parametrize(
    ("end", "whose"), [("pass", ["rank 0", "rank 1"]), ("assert 0", ["ranks 0,1"])]
)
def test_equal_lines_are_told_once_in_a_failure(merged: Merged, end: str, whose: list[str]) -> None:
    body = f"print('a', 'b', 'c', rank, sep='\\n'); {end}"
    call = merged(body, body)["call"]
    assert [title for title, _ in call.sections] == [f"Captured stdout call ({r})" for r in whose]


def test_errors_of_ours_lead_with_what_they_say(merged: Merged) -> None:
    body = "from pytest_pprank.errors import StartFailed; raise StartFailed('no good')"
    call = merged(body, body)["call"]
    assert call.longrepr.reprcrash.message == "[ranks 0,1] StartFailed: no good"


def test_a_revert_is_told_once_in_a_failure(merged: Merged) -> None:
    call = merged("assert 0", "assert 0", reverted=("26883: some fix",))["call"]
    texts = [text for _, text in call.sections] + call.longreprtext.splitlines()
    assert sum("reverted: 26883" in text for text in texts) == 1


NOISE = "WARNING: Logging before InitGoogleLogging() is written to STDERR\n"


@pytest.mark.parametrize(
    ("phase", "flags", "shown"),
    [("call", [], "real\n"), ("call", ["-v"], f"{NOISE}real\n"), ("setup", [], f"{NOISE}real\n")],
)
def test_what_sglangs_start_prints_in_every_run(
    pytester: pytest.Pytester, phase: str, flags: list[str], shown: str
) -> None:
    """A failure of the call leaves it out, a start that has failed does not."""
    pytester.makeini(f"[pytest]\naddopts = {' '.join(flags)}")
    (item,) = pytester.getitems("def test_func(): pass")
    item.config.option.verbose = len(flags)
    printed = {0: {"setup": {"stderr": f"{NOISE}real\n"}, "call": {"stderr": NOISE}}}
    trouble = RankDied(rank=0, place=phase, how="somehow")
    passed = {"outcome": "passed", "duration": 1, "start": 1, "stop": 2}
    reports = {0: [{"when": "setup", **passed}] if phase == "call" else []}
    outcome = TestOutcome(reports=reports, printed=printed, troubles=[trouble])
    merged = ReportMerger(item.config, ()).merge(item, PLAN, outcome)
    (report,) = [it for it in merged if it.failed]
    sections = dict(report.sections)
    assert report.when == phase
    assert sections["Captured stderr setup (rank 0)"] == shown
    if phase == "call":
        assert sections["Captured stderr call (rank 0)"] == NOISE  # of the call: kept as it is
