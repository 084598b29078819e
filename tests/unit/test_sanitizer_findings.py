"""Which sanitizers watch, what counts as one finding, what is allowed, and which ranks match."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pytest_pprank.checks import SANITIZERS, chosen_for, consensus_compare, parse_names
from pytest_pprank.checks.base import Watch
from pytest_pprank.checks.logs import Logs
from pytest_pprank.checks.p2p_compare import compare
from pytest_pprank.errors import UsageError
from pytest_pprank.protocol.findings import Finding
from pytest_pprank.report.allowances import Allowances, read_allowances
from pytest_pprank.report.findings import Findings, SeenFinding, in_words
from pytest_pprank.sglang.events.logs import log_record

NAMES = tuple(row.name for row in SANITIZERS)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("all", NAMES),
        ("none", ()),
        ("", ()),
        ("p2p, logs", ("logs", "p2p")),
        (["p2p"], ("p2p",)),
        ("-logs", NAMES[1:]),
        ("all, -logs", NAMES[1:]),
    ],
)
def test_names(given: str | list[str], names: tuple[str, ...]) -> None:
    assert parse_names(given, "x") == names


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("log", r"x: there is no sanitizer 'log' \(did you mean 'logs'\?\); give 'all'"),
        (True, "x: True; give 'all', 'none' or names: logs"),
        ("all,logs", "no sanitizer 'all'"),
    ],
)
def test_wrong_names(given: str | bool, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_names(given, "x")


def test_those_for_sglang_need_it() -> None:
    assert "logs" not in chosen_for(NAMES, "cpu", sglang=False)
    assert "p2p" in chosen_for(NAMES, "cpu", sglang=False)
    assert "logs" in chosen_for(NAMES, "cpu", sglang=True)
    assert "streams" in chosen_for(NAMES, "sim", sglang=False)
    assert "streams" not in chosen_for(NAMES, "cuda", sglang=False)
    assert "streams" in chosen_for(NAMES, "cuda", sglang=False, asked={"streams"})


def test_equal_findings_are_one() -> None:
    findings = Findings(["logs"])
    for rank in (1, 0):
        findings.add(rank, Finding("logs", f"req-00{rank} lost 1{rank} tokens", ("a.py:3 in f",)))
    findings.add_results(0, "")
    counts = {"logs: req-N lost N tokensa.py:3 in f": 7}
    findings.add_results(1, json.dumps({"abandoned": False, "evidence": {}, "counts": counts}))
    (seen,) = findings.all()
    assert seen.lines() == [
        "logs: req-001 lost 11 tokens",
        "  on ranks 0,1, 7 times",
        "  at a.py:3 in f",
    ]


def allow(tmp_path: Path, text: str) -> Allowances:
    file = tmp_path / "allow.yaml"
    file.write_text(text)
    return read_allowances(str(file))


def test_allowed_findings(tmp_path: Path) -> None:
    allowances = allow(
        tmp_path,
        "- {sanitizer: logs, match: lost, reason: known, test: '*::test_a*'}\n"
        "- {sanitizer: logs, match: nobody, reason: old}\n"
        "- {sanitizer: p2p, match: x, reason: that one did not watch}\n",
    )
    findings = Findings(["logs"])
    findings.add(0, Finding("logs", "req-001 lost 11 tokens"))
    found = list(findings.all())
    assert allowances.sift(found, "t.py::test_b") == found
    assert len(allowances.unused()) == 0
    allowances.note_watched(("logs",))
    assert [entry.match for entry in allowances.unused()] == [("lost",), ("nobody",)]
    assert allowances.sift(found, "t.py::test_a[pp2]") == []
    assert [entry.match for entry in allowances.unused()] == [("nobody",)]
    assert Allowances().sift(found, "t.py::test_a[pp2]") == found


def test_an_allowance_may_want_several_words(tmp_path: Path) -> None:
    allowances = allow(
        tmp_path, "- {sanitizer: streams, match: [writer, reader], reason: the host orders it}"
    )
    both = SeenFinding(Finding("streams", "unordered", ("a.py:1 in reader",), "writer"))
    one = SeenFinding(Finding("streams", "unordered", ("a.py:1 in reader",)))
    assert allowances.sift([both, one], "t.py::test") == [one]


def test_what_the_package_allows_is_never_useless() -> None:
    allowances = read_allowances("")
    allowances.note_watched(tuple(row.name for row in SANITIZERS))
    assert allowances.unused() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1", "must be a list"),
        ("- {sanitizer: logs, match: [x, 1], reason: y}", "'match' is a text, or a list of texts"),
        ("- {sanitizer: logs, match: [], reason: y}", "'match' is missing or empty"),
        ("- [1]", "an entry has sanitizer, match, reason, test"),
        ("- {sanitizer: logs, match: x}", "'reason' is missing or empty"),
        ("- {sanitizer: lgs, match: x, reason: y}", r"no sanitizer 'lgs' \(did you mean 'logs'"),
        ("- {sanitizer: logs, macth: x, reason: y}", r"no key 'macth' \(did you mean 'match'"),
        ("- {", "while parsing"),
    ],
)
def test_wrong_allowances(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=rf"--pprank-sanitize-allow: .*{words}"):
        allow(tmp_path, text)


def log(
    way: str,
    *operations: Any,
    peer: int | None = None,
    ranks: tuple[int, ...] = (0, 1),
    group: str = "g",
) -> dict[str, Any]:
    kinds = [[operation, f"a.py:{n} in f"] for n, operation in enumerate(operations)]
    return {
        "way": way, "group": group, "label": "group pp", "peer": peer, "tag": 0,
        "ranks": list(ranks), "kinds": kinds, "operations": [*range(len(operations))],
    }  # fmt: skip


def test_messages_that_fit() -> None:
    sent, received = log("send", "int64[1]", peer=1), log("recv", "int64[1]", peer=0)
    assert not list(compare({0: [sent], 1: [received]}))
    assert not list(compare({0: None, 1: None}))
    assert not list(compare({0: [sent], 1: [log("recv", "int64[1]", peer=None)]}))


def test_messages_that_do_not_fit() -> None:
    sent = log("send", "int64[1]", "int64[2]", peer=1)
    (other,) = compare({0: [sent], 1: [log("recv", "int64[1]", "int32[4]", peer=0)]})
    assert other.text.splitlines() == [
        "messages from rank 0 to rank 1 (group pp, tag 0) do not fit together (the dtype "
        "and the size differ):",
        "  rank 0 sent 2, number 2: int64[2] (a.py:1 in f)",
        "  rank 1 received 2, number 2: int32[4] (a.py:1 in f)",
    ]
    (lost,) = compare({0: [sent], 1: None})
    assert "  rank 1 received 0, number 1: none" in lost.text


def test_collectives() -> None:
    both = log("collective", "all_reduce of float32, 16 B", "barrier")
    one = log("collective", "barrier", "all_reduce of float32, 16 B")
    assert not list(compare({0: [both], 1: [both]}))
    (order,) = compare({0: [both], 1: [one]})
    assert "rank 0 issued 2, number 1: all_reduce" in order.text
    assert "rank 1 issued 2, number 1: barrier" in order.text
    assert not list(compare({0: [both]})), "not all members are here"


def test_an_exception_explains_what_does_not_fit_after_it() -> None:
    raised = {**log("collective", "barrier", "all_reduce of float32, 16 B"), "failed": 0}
    assert not list(compare({0: [raised], 1: None}))
    fits = {**raised, "failed": 1}
    assert list(compare({0: [fits], 1: None})), "the barrier came before it"
    other = [log("send", "int64[1]", peer=1)]
    (finding,) = compare({0: [raised, *other], 1: None})
    assert finding.text.startswith("messages from rank 0 to rank 1")


def test_groups_that_not_all_ranks_create() -> None:
    created = {**log("create", "new_group of ranks 0,1"), "group": ""}
    assert not list(compare({0: [created], 1: [created]}))
    (finding,) = compare({0: [created], 1: None})
    assert "  rank 1 created 0, number 1: none" in finding.text


def ran(stage: int, count: int, last: str = "decode of a") -> dict[str, Any]:
    place = {"role": "pp", "dp_rank": 0, "number": stage, "place": f"stage {stage}"}
    return {**place, "count": count, "hash": count, "last": last}


def test_stages_that_ran_other_forwards() -> None:
    assert not list(consensus_compare.compare({0: ran(0, 3), 1: ran(1, 3)}))
    assert not list(consensus_compare.compare({0: None, 1: None}))
    (finding,) = consensus_compare.compare({0: ran(0, 3), 1: ran(1, 2)})
    assert "stage 1: 2 forwards, the last one decode of a" in finding.text
    other_role = {**ran(0, 0), "role": "decode"}
    assert not list(consensus_compare.compare({0: ran(0, 3), 1: ran(1, 3), 2: other_role}))
    other_dp_rank = {**ran(0, 0), "number": 2, "dp_rank": 1}
    assert not list(consensus_compare.compare({0: ran(0, 3), 1: ran(1, 3), 2: other_dp_rank}))


def test_group_that_is_given_up_is_not_compared() -> None:
    """Its ranks were interrupted in the middle of their last actions."""
    for abandoned, found in ((False, 1), (True, 0)):
        findings = Findings(["consensus"])
        for rank in (0, 1):
            evidence = {"consensus": ran(rank, rank)}
            report = {"abandoned": abandoned and rank == 1, "evidence": evidence, "counts": {}}
            findings.add_results(rank, json.dumps(report))
        findings.compare()
        assert len(list(findings.all())) == found


@pytest.mark.parametrize(
    ("logged", "found"),
    [
        ("Failed to profile prefill latency: None", True),
        ("Failed to load the tokenizer", True),
        # 0.5.13 to 0.5.16, for a model without the file
        ("Failed to load generation config for /m: there is no generation_config.json", False),
    ],
)
def test_warnings_that_are_findings_of_logs(logged: str, found: bool) -> None:
    findings: list[Finding] = []
    logs = Logs(Watch("logs", None, findings.append))  # type: ignore[arg-type]
    record = logging.LogRecord("sglang", logging.WARNING, "a.py", 3, logged, (), None, "f")
    logs._logged(log_record(record))
    assert [logged in finding.text for finding in findings] == [True] * found


def test_a_cure_of_several_findings_is_told_once() -> None:
    found = [
        SeenFinding(Finding("logs", "first", ("a.py:1 in f",), "allow it")),
        SeenFinding(Finding("logs", "second", (), "allow it"), {1: 1}),
        SeenFinding(Finding("kv", "third", (), "")),
        SeenFinding(Finding("kv", "fourth", (), "free it")),
    ]
    assert in_words(found).splitlines() == [
        "logs: first",
        "  at a.py:1 in f",
        "logs: second",
        "  on rank 1",
        "  cure (of these 2): allow it",
        "kv: third",
        "kv: fourth",
        "  cure: free it",
    ]
