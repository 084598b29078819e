"""What a plugin may register, the errors for anything else, and how long it is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pluggy
import pytest

from pytest_pprank import (
    CheckRow,
    FaultRow,
    Finding,
    Perturbation,
    Sanitizer,
    UsageError,
    hookspecs,
)
from pytest_pprank.checks import CHECKS, SANITIZERS, chosen_for, parse_names
from pytest_pprank.faults import FAULTS, PERTURBATIONS, parse_mark, parse_option, schedule_for
from pytest_pprank.names import asked_by_name
from pytest_pprank.registration import check_late, register
from pytest_pprank.registry import Row
from pytest_pprank.report.findings import Findings
from pytest_pprank.report.off import expected_off, needed_by
from pytest_pprank.sglang.static.installed import Installed

OURS = tuple(row.name for row in SANITIZERS)


class Mine(Sanitizer):
    """A check."""


class Odd(Perturbation):
    """A fault."""


ROW = CheckRow("mine", "of a test", Mine)
FAULT = FaultRow("odd", "of a test", Odd)


class Config:
    """The part of pytest's config that a registration needs."""

    def __init__(self) -> None:
        self.plugins = pluggy.PluginManager("pytest")
        self.plugins.add_hookspecs(_specs())  # type: ignore[arg-type]
        self.hook = self.plugins.hook
        self.stash = pytest.Stash()
        self.cleanups: list[Callable[[], None]] = []

    def add_cleanup(self, function: Callable[[], None]) -> None:
        self.cleanups.append(function)

    def add(self, *, checks: Any = (), faults: Any = ()) -> None:
        """Register a plugin that returns these."""
        implementation = pluggy.HookimplMarker("pytest")
        plugin = SimpleNamespace(
            pytest_pprank_register_checks=implementation(lambda: checks),
            pytest_pprank_register_faults=implementation(lambda: faults),
        )
        self.plugins.register(plugin)

    def take(self, *, strict: bool = True, **rows: Any) -> None:
        """Register one plugin, and add its rows."""
        self.add(**rows)
        register(self, strict=strict)  # type: ignore[arg-type]


def _specs() -> SimpleNamespace:
    specification = pluggy.HookspecMarker("pytest")
    names = ("pytest_pprank_register_checks", "pytest_pprank_register_faults")
    return SimpleNamespace(**{name: specification(getattr(hookspecs, name)) for name in names})


@pytest.fixture
def config() -> Iterator[Config]:
    made = Config()
    yield made
    for cleanup in made.cleanups:
        cleanup()


def test_both_are_known_until_the_run_is_over(config: Config) -> None:
    config.take(checks=[ROW], faults=[FAULT])
    assert CHECKS.names == (*OURS, "mine")
    assert FAULTS.names[-1] == "odd"
    assert CHECKS.row_of("mine").load() is Mine
    config.cleanups.pop()()
    assert CHECKS.names == OURS
    assert len(FAULTS.names) == len(PERTURBATIONS)


def test_run_within_a_run_leaves_the_outer_one_as_it_was(config: Config) -> None:
    config.take(checks=[ROW])
    inner = Config()
    inner.take(checks=[replace(ROW, name="other")], strict=False)
    assert CHECKS.names == (*OURS, "other")
    inner.cleanups.pop()()
    assert CHECKS.names == (*OURS, "mine")
    assert CHECKS.strict


def test_those_of_several_plugins_in_their_order(config: Config) -> None:
    config.add(checks=[replace(ROW, name="one")])
    config.take(checks=(replace(ROW, name="two"),))
    assert CHECKS.names == (*OURS, "one", "two")


def test_names_are_taken_as_ours(config: Config) -> None:
    config.take(checks=[ROW, replace(ROW, name="shy", opt_in=True)], faults=[FAULT])
    assert parse_names("all", "x") == (*OURS, "mine")
    assert parse_names("-logs", "x") == (*OURS[1:], "mine")
    assert parse_names("-mine", "x") == OURS
    assert parse_names("+shy", "x") == (*OURS, "mine", "shy")
    assert parse_names("all,+shy", "x") == (*OURS, "mine", "shy")
    assert parse_names("shy,logs", "x") == ("logs", "shy")
    assert asked_by_name("+shy,-logs") == {"shy"}
    assert parse_option("7:odd", "x").names == ("odd",)  # type: ignore[union-attr]
    assert "odd" in parse_mark("-skew", "x").names
    with pytest.raises(UsageError, match=r"there is no sanitizer 'mne' \(did you mean 'mine'\?\)"):
        parse_names("mne", "x")


def test_all_is_still_repeated_by_the_seed(config: Config) -> None:
    config.take(faults=[FAULT])
    schedule = schedule_for(parse_option("7", "x"), None, "cpu", sglang=True)
    assert schedule is not None
    assert "odd" in schedule.names
    assert str(schedule) == "7"


def test_chosen_by_device_and_sglang(config: Config) -> None:
    config.take(checks=[replace(ROW, devices=["sim"], sglang=False)])
    assert chosen_for(("mine",), "sim", sglang=False) == ("mine",)
    assert chosen_for(("mine",), "cpu", sglang=True) == ()


def test_it_is_off_where_sglang_lacks_its_hook(config: Config, tmp_path: Any) -> None:
    config.take(checks=[replace(ROW, hooks=["forward"])])
    assert "sanitizer mine" in needed_by("forward")
    off = expected_off(Installed("9.9", tmp_path), ["mine"])
    assert "has no sglang.srt.model_executor.model_runner.ModelRunner" in off["mine"]


def test_evidence_of_both_is_compared(config: Config) -> None:
    def compare(by_rank: dict[int, Any]) -> Iterator[Finding]:
        yield Finding("x", f"found {by_rank}")

    def broken(_: Any) -> Any:
        raise ValueError("I am no good")

    odd, bad = replace(FAULT, compare=compare), replace(FAULT, name="bad", compare=broken)
    config.take(checks=[replace(ROW, compare=compare)], faults=[odd, bad])
    findings = Findings(["mine"], ["odd", "bad", "skew"])
    evidence = {"mine": 7, "odd": [1]}
    findings.add_results(0, json.dumps({"evidence": evidence, "counts": {}, "abandoned": False}))
    findings.add_results(1, "")
    findings.compare()
    lines = [seen.finding.text.partition("\n")[0] for seen in findings.all()]
    assert lines == [
        "found {0: 7, 1: None}",
        "found {0: [1], 1: None}",
        "the perturbation itself failed (ValueError: I am no good)",
    ]


def test_a_rank_lets_an_unknown_name_pass(config: Config) -> None:
    """The controller has checked it; what the rank does not have is reported with the test."""
    config.take(strict=False)
    assert parse_names("theirs, logs", "x") == ("logs", "theirs")
    with pytest.raises(UsageError, match=r"there is no sanitizer 'theirs' in this process: one of"):
        CHECKS.row_of("theirs")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (replace(ROW, name="p2p"), "sanitizer 'p2p': the name is taken by another sanitizer"),
        (replace(ROW, name="skew"), "the name is taken by another perturbation"),
        (replace(ROW, name="my check"), "sanitizer 'my check': the name must be an identifier"),
        (replace(ROW, name="all"), "and not 'all' or 'none'"),
        (replace(ROW, name=cast(Any, 7)), "sanitizer 7: name must be str, not 7"),
        (replace(ROW, sglang=cast(Any, "no")), "sglang must be bool, not 'no'"),
        (replace(ROW, devices="sim"), "devices must be a list or tuple, not 'sim'"),
        (
            replace(ROW, devices=["gpu"]),
            "devices: there is no 'gpu' (did you mean 'cpu'?); known: cpu, sim, cuda",
        ),
        (replace(ROW, hooks=["forwad"]), "no 'forwad' (did you mean 'forward'?); known: "),
        (replace(ROW, place="no_colon"), "place 'no_colon' is not 'module:Class'"),
        (replace(ROW, place="nowhere.at_all:X"), "there is no module 'nowhere.at_all'"),
        (replace(ROW, place=f"{__name__}:Nothing"), f"{__name__} has no 'Nothing'"),
        (replace(ROW, place=Odd), "is not a class with the base pytest_pprank.Sanitizer"),
        (replace(ROW, place=cast(Any, lambda watch: watch)), "not a class with the base"),
        (replace(ROW, compare="nowhere:x"), "compare 'nowhere:x': there is no module 'nowhere'"),
    ],
)
def test_wrong_row(config: Config, row: Row, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.take(checks=[row])
    assert str(caught.value).startswith("pytest_pprank_register_checks: sanitizer ")
    assert words in str(caught.value)


def test_wrong_row_of_a_fault(config: Config) -> None:
    with pytest.raises(UsageError, match=r"faults: .* 'odd': .* base pytest_pprank\.Perturbation"):
        config.take(faults=[replace(FAULT, place=Mine)])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ROW, "must return a list of CheckRow, not CheckRow"),
        ([FAULT], "is not a pytest_pprank.CheckRow"),
        ([Mine], "is not a pytest_pprank.CheckRow"),
        ([ROW, ROW], "sanitizer 'mine': the name is taken by another sanitizer"),
    ],
)
def test_wrong_list(config: Config, given: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.take(checks=given)
    assert words in str(caught.value)


def test_plugin_that_comes_late(config: Config) -> None:
    config.take(checks=[ROW])
    check_late(config)  # type: ignore[arg-type]
    config.add(checks=[replace(ROW, name="other")])
    with pytest.raises(UsageError, match=r"pytest_pprank_register_checks of .* comes too late"):
        check_late(config)  # type: ignore[arg-type]
