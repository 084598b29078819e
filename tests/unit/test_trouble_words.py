"""Each verdict says who, where and why in words of its own."""

from __future__ import annotations

import pytest

from pytest_pprank.report.evidence import Evidence
from pytest_pprank.report.verdicts import (
    CollectionFailed,
    GroupCouldNotEnd,
    GroupCouldNotStart,
    GroupDied,
    Hung,
    RankDied,
    RanksDiverged,
    Stuck,
    describe_exit,
)
from pytest_pprank.words import plural_ranks


def test_rank_died() -> None:
    verdict = RankDied(rank=1, place="call", how="killed by SIGKILL")
    assert verdict.kind == "rank died"
    assert verdict.text == "rank 1 died in call: killed by SIGKILL"


def test_rank_died_with_evidence() -> None:
    evidence = Evidence(last_line="cannot allocate", out_of_memory="out of memory: one killed")
    text = RankDied(rank=0, place="setup", how="killed by SIGKILL", evidence=evidence).text
    assert "killed by SIGKILL; out of memory: one killed" in text
    assert text.endswith("the last line of its stderr: cannot allocate")


def test_ranks_diverged() -> None:
    verdict = RanksDiverged(
        inside={1: "call", 2: "call", 3: "setup"},
        through={0: "failed in call"},
        waits=("rank 1 waits in recv from rank 0",),
        seconds=5.04,
        limit="--pprank-grace: 5 s",
    )
    assert verdict.kind == "ranks diverged"
    assert verdict.text == (
        "ranks 1,2 are still inside call; rank 3 is still inside setup, 5.0 s after rank 0 failed "
        "in call (--pprank-grace: 5 s)\nrank 1 waits in recv from rank 0"
    )


def test_hung() -> None:
    verdict = Hung(inside={0: "call", 1: "teardown"}, timeout=2)
    assert verdict.kind == "hung"
    assert verdict.text == (
        "no rank got through within 2 s: rank 0 is still inside call; rank 1 is still inside "
        "teardown"
    )


def test_stuck() -> None:
    inside = {0: "call", 1: "call"}
    verdict = Stuck(inside=inside, waits=("deadlock: both",), how="deadlock", seconds=5)
    assert verdict.kind == "hung"
    assert verdict.text == (
        "deadlock: ranks 0,1 are still inside call, and for 5.0 s nothing has moved, nor can it\n"
        "deadlock: both"
    )


def test_collection_failed() -> None:
    verdict = CollectionFailed(reasons={1: "ImportError: no"})
    assert verdict.kind == "collection failed on a rank"
    assert verdict.text == "rank 1: ImportError: no"


def test_collection_failed_alike() -> None:
    verdict = CollectionFailed(reasons={0: "no", 1: "other", 2: "no"})
    assert verdict.text == "ranks 0,2: no; rank 1: other"


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (GroupCouldNotStart, "worker group could not start"),
        (GroupDied, "worker group died"),
        (GroupCouldNotEnd, "worker group could not be ended"),
    ],
)
def test_group_as_a_whole(
    verdict: type[GroupCouldNotStart | GroupDied | GroupCouldNotEnd], kind: str
) -> None:
    assert verdict.kind == kind
    assert verdict(error="why").text == "why"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (7, "it exited with code 7"),
        (None, "it closed its connection"),
    ],
)
def test_exit_codes(code: int | None, words: str) -> None:
    assert describe_exit(code) == words


def test_plural_ranks() -> None:
    assert plural_ranks([3]) == "rank 3"
    assert plural_ranks([2, 0]) == "ranks 0,2"
