"""The lifecycle of checks and faults: which methods are called when, and what that costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pprank import CheckRow, FaultRow, Finding, Perturbation, SeamMissing
from pytest_pprank.checks import CHECKS
from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.faults import FAULTS
from pytest_pprank.host import lifecycles
from pytest_pprank.protocol.items import item_key
from pytest_pprank.protocol.messages import RunTest
from pytest_pprank.protocol.schedule import Schedule

said: list[str] = []


class Note(Sanitizer):
    def begin(self) -> None:
        said.append("check begins")
        self.watch.at_end(lambda: said.append("check is undone"))

    def loop(self, engine: Any) -> None:
        said.append(f"check sees {engine}")

    def iteration(self, number: int) -> None:
        said.append(f"check at {number}")

    def quiescent(self, left: Any) -> None:
        said.append(f"check finds {left}")

    def end(self) -> None:
        said.append("check ends")

    def evidence(self) -> Any:
        return {"check": 1}


class Plain(Sanitizer):
    """Overrides nothing."""


class Disturb(Perturbation):
    def begin(self) -> None:
        said.append("fault begins")
        self.disturbance.at_end(lambda: said.append("fault is undone"))
        self.disturbance.at_end(self.disturbance.strike)

    def iteration(self, number: int) -> None:
        said.append(f"fault at {number}")

    def quiescent(self, left: Any) -> None:
        said.append(f"fault finds {left}")

    def end(self) -> None:
        said.append("fault ends")

    def evidence(self) -> Any:
        return {"fault": 2}


class NoSuchThing(Perturbation):
    def begin(self) -> None:
        raise SeamMissing("SGLang has no such thing")


class Second(Perturbation):
    def begin(self) -> None:
        self.disturbance.at_end(lambda: said.append("second fault is undone"))


class Fails(Sanitizer):
    def begin(self) -> None:
        self.watch.at_end(lambda: said.append("undone"))

    def quiescent(self, left: Any) -> None:
        self.fail(left)

    def iteration(self, number: int) -> None:
        self.fail(number)

    def fail(self, _: Any) -> None:
        said.append("fails")
        raise ValueError("I am no good")


class Engine:
    iterations = 0

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return "an engine"

    def at_start_of_iteration(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def run(self) -> None:
        for callback in self.callbacks:
            callback()
        self.iterations += 1


CHECK_ROWS = [CheckRow(kind.__name__, "", kind) for kind in (Note, Plain, Fails)]
FAULT_ROWS = [FaultRow(kind.__name__, "", kind) for kind in (Disturb, Second, NoSuchThing)]


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    said.clear()
    monkeypatch.setattr(CHECKS, "others", tuple(CHECK_ROWS))
    monkeypatch.setattr(FAULTS, "others", tuple(FAULT_ROWS))


@pytest.fixture
def found() -> list[Finding]:
    return []


@pytest.fixture
def run(found: list[Finding], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a factory of a test's context: its checks, its faults, and whether it failed."""
    pprank = SimpleNamespace(rank=0, role="pp", failed=False, spoiled="")
    key = item_key(request.node)

    def make(*checks: str, faults: tuple[str, ...] = (), failed: bool = False, **more: Any) -> Any:
        pprank.failed = failed
        schedule = Schedule(7, faults, **more) if faults else None
        order = RunTest(key, None, 1, "test_it", checks, schedule)
        return lifecycles.running(order, pprank, found.append)  # type: ignore[arg-type]

    return make


def quiescent(monkeypatch: pytest.MonkeyPatch, left: Callable[[Any], Any]) -> None:
    events = SimpleNamespace(quiescent=left)
    monkeypatch.setitem(__import__("sys").modules, "pytest_pprank.sglang.events.quiescent", events)
    lifecycles.at_quiescence("a scheduler", SimpleNamespace(failed=False))  # type: ignore[arg-type]


def test_the_whole_life(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    with run("Note", "Plain", faults=("Disturb",)) as both:
        lifecycles.engine_created(engine)  # type: ignore[arg-type]
        lifecycles.begin_call()
        engine.run()
        engine.run()
        quiescent(monkeypatch, lambda scheduler: f"nothing in {scheduler}")
    assert said == [
        "check begins",
        "check sees an engine",
        "fault begins",
        "check at 0",
        "fault at 0",
        "check at 1",
        "fault at 1",
        "check finds nothing in a scheduler",
        "fault finds nothing in a scheduler",
        "fault ends",
        "fault is undone",
        "check ends",
        "check is undone",
    ]
    assert json.loads(both.results())["evidence"] == {
        "Note": {"check": 1},
        "Disturb": {"fault": 2},
    }
    assert both.describe_faults() == "Disturb once"


def test_who_does_not_override_costs_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    looks: list[Any] = []
    with run("Plain") as plain:
        lifecycles.engine_created(engine)  # type: ignore[arg-type]
        quiescent(monkeypatch, looks.append)
    assert engine.callbacks == looks == []
    assert plain.results() == ""


def test_test_that_has_failed_has_no_end_but_is_undone(run: Any) -> None:
    with run("Note", faults=("Disturb",), failed=True):
        lifecycles.begin_call()
    assert said == ["check begins", "fault begins", "fault is undone", "check is undone"]


def test_what_was_put_in_force_last_is_undone_first(run: Any) -> None:
    with run(faults=("Disturb", "Second")):
        lifecycles.begin_call()
    assert said[1:] == ["fault ends", "second fault is undone", "fault is undone"]


def test_session_that_breaks_off_is_undone(run: Any) -> None:
    def broken_off() -> None:
        with run("Note", faults=("Disturb",)):
            lifecycles.begin_call()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert said[-2:] == ["fault is undone", "check is undone"]
    lifecycles.begin_call()
    assert said.count("fault begins") == 1


def test_own_failure_is_found_once_and_never_raised(run: Any, found: list[Finding]) -> None:
    engine = Engine()
    with run("Fails"):
        lifecycles.engine_created(engine)  # type: ignore[arg-type]
        engine.run()
        engine.run()
    assert said == ["fails", "undone"]
    (finding,) = found
    assert finding.sanitizer == "Fails"
    assert finding.text.startswith("the sanitizer itself failed (ValueError: I am no good)\n")
    assert "in fail" in finding.text
    assert finding.cure


def test_own_failure_at_quiescence_fails_the_test(
    run: Any, found: list[Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    pprank = SimpleNamespace(failed=False)
    events = SimpleNamespace(quiescent=lambda _: None)
    module = "pytest_pprank.sglang.events.quiescent"
    monkeypatch.setitem(__import__("sys").modules, module, events)
    with run("Fails"):
        lifecycles.at_quiescence(None, pprank)  # type: ignore[arg-type]
    assert pprank.failed
    assert len(found) == 1


def test_fault_that_sglang_does_not_allow_is_off(run: Any, found: list[Finding]) -> None:
    with run(faults=("NoSuchThing", "Disturb"), by_name=False) as both:
        lifecycles.begin_call()
    assert both.describe_faults() == "NoSuchThing: off, SGLang has no such thing; Disturb once"
    assert found == []


def test_fault_that_was_asked_for_and_is_off_fails_the_test(run: Any) -> None:
    with run(faults=("NoSuchThing",)), pytest.raises(SeamMissing, match="no such thing"):
        lifecycles.begin_call()


def test_name_that_is_not_known_here(run: Any, found: list[Finding]) -> None:
    with run("Note", "Nobody"):
        pass
    (finding,) = found
    assert finding.sanitizer == "Nobody"
    assert "there is no sanitizer 'Nobody' in this process (did you mean" not in finding.text
    assert "there is no sanitizer 'Nobody' in this process" in finding.text
    assert said[-1] == "check is undone"


def test_seams_must_be_those_of_the_row(run: Any, found: list[Finding]) -> None:
    class Listens(Perturbation):
        def begin(self) -> None:
            self.disturbance.listen("forward", print)

    row = replace(FAULT_ROWS[0], name="Listens", place=Listens)
    FAULTS.others = (*FAULTS.others, row)
    with run(faults=("Listens",)):
        lifecycles.begin_call()
    assert "'forward' is not among the hooks of perturbation 'Listens'" in found[0].text
