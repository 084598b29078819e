"""The regression bench without SGLang: its decisions, its file, how it resumes, its output."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_pprank.__main__ import main
from pytest_pprank.bench import command, results
from pytest_pprank.bench.runs import Options, Red, Run
from pytest_pprank.sglang.reverts.reached import Reached
from pytest_pprank.sglang.static import release

REVERT = """
id: {name}
title: <b> & {name}
patches:
- target: sglang.mod.{function}
  edits:
  - match: x = 1
    replacement: x = {value}
"""


def red(
    test: str = "test_a.py::test_b[pp2]", text: str = "boom", verdict: str = "failed", **kw: str
) -> Red:
    return Red(test, "call", verdict, kw.get("seen_by", "assert_kv_balanced"), text, text)


def reached(*tests: str, target: str = "sglang.mod.f") -> tuple[Reached, ...]:
    return tuple(Reached(target, test, "call") for test in tests)


def run_of(*reds: Red, status: int | None = None, **values: Any) -> Run:
    seconds = {"test_a.py::test_b[pp2]": 2.0, "test_a.py::test_c[pp2]": 1.0}
    given = {"seconds": 3.0, "seconds_of": seconds, "topologies": dict.fromkeys(seconds, "pp=2")}
    given["status"] = (1 if reds else 0) if status is None else status
    return Run(**{**given, "reds": reds, **values})


GREEN = run_of()
CAUGHT = run_of(red(text="in f of req-007"), reached=reached("t"))
MISSED = run_of(reached=reached("test_a.py::test_b[pp2]"))


class FakeRunner:
    """Gives each run the outcome that the test has prepared for its name."""

    store: dict[str, Run | BaseException | signal.Signals]
    calls: list[tuple[str, list[str], frozenset[str]]]

    def __init__(self, options: Options, folder: Path, beat: object) -> None:
        assert folder.is_dir()
        del options, beat
        self.stopped = threading.Event()

    def run(
        self,
        name: str,
        revert: str | None = None,
        *,
        first: Sequence[str] = (),
        skip: Iterable[str] = (),
        to_end: bool = False,
        device: str = "",
    ) -> Run:
        unmodified = name == "baseline" or name.startswith("test_")
        assert to_end == (unmodified or name.endswith("probe"))
        assert (revert is None) == unmodified
        assert device == ("sim" if name.endswith(", sim") else "")
        self.calls.append((name, list(first), frozenset(skip)))
        outcome = self.store[name]
        if isinstance(outcome, signal.Signals):
            signal.raise_signal(outcome)  # in this thread it does not interrupt the main thread
            assert self.stopped.wait(60), "the run is not ended"
            return Run(2, 1.0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def stop(self) -> None:
        self.stopped.set()

    def is_stopped(self) -> bool:
        return self.stopped.is_set()


class Bench:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.device = "cuda"
        self.reverts = folder / "reverts"
        self.reverts.mkdir()
        root = folder / "sglang"
        root.mkdir()
        (root / "mod.py").write_text(
            "def f():\n    x = 1\n\ndef g():\n    x = 1\n\ndef h():\n    x = 1\n"
            "\ndef waits(event):\n    event.synchronize()\n    return event\n"
        )
        self.store: dict[str, Run | BaseException | signal.Signals] = {"baseline": GREEN}
        self.calls: list[tuple[str, list[str], frozenset[str]]] = []
        monkeypatch.setattr(FakeRunner, "store", self.store, raising=False)
        monkeypatch.setattr(FakeRunner, "calls", self.calls, raising=False)
        monkeypatch.setattr(release, "check_installed", lambda: None)
        monkeypatch.setattr(release, "package_root", lambda: root)
        monkeypatch.setattr(command, "Runner", FakeRunner)
        monkeypatch.setattr(command, "choose_device", lambda *_: self.device)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def add(self, name: str, run: Run | None = None, function: str = "f", value: int = 2) -> None:
        text = REVERT.format(name=name, function=function, value=value)
        (self.reverts / f"{name}.yaml").write_text(text)
        if run is not None:
            self.store[name] = run

    def run(self, *arguments: str) -> int:
        self.calls.clear()
        return main(["regressions", "reverts", "--json", "r.json", "--jobs", "1", *arguments])

    @property
    def ran(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def json(self) -> Any:
        return json.loads((self.folder / "r.json").read_text())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_all_caught_is_success(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.add("one", CAUGHT)
    bench.add("two", run_of(red(), reached=reached("t")))
    assert bench.run() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith(("one ", "two "))}
    assert "caught" in rows["one"]
    assert "assert_kv_balanced" in rows["one"]
    assert "test_a.py::test_b[pp2]" in rows["one"]
    assert rows["one"].endswith("function, request")
    assert rows["two"].endswith("neither")
    assert lines[-1].startswith("2 of 2 caught; ")
    assert bench.json()["results"]["one"]["names_request"] is True


@pytest.mark.parametrize(
    ("run", "status", "reason"),
    [
        (MISSED, "missed", "1 tests get to the reverted code, none went red"),
        (run_of(), "missed", "no test gets to the reverted code"),
        (run_of(red()), "could not run", "red, but no test got to the reverted code"),
        (
            run_of(red(verdict="worker group could not start", text="no f"), reached=reached("t")),
            "could not run",
            "no f",
        ),
        (run_of(seconds_of={}, status=5), "could not run", "pytest collected no test"),
        (run_of(seconds_of={}, status=4, output="bad -k"), "could not run", "bad -k"),
        (run_of(status=3, output="INTERNALERROR"), "could not run", "INTERNALERROR"),
        (run_of(errors=("cannot import",)), "could not run", "cannot import"),
        (
            Run(None, 9.0, topologies={"t1": "", "t2": ""}, seconds_of={"t1": 1.0}),
            "hung",
            "without a red test, in t2",
        ),
        (Run(None, 9.0, topologies={"t1": ""}), "hung", "without a red test, in t1"),
        (Run(None, 9.0, output="imports"), "could not run", "imports"),
    ],
)
def test_what_is_no_catch(bench: Bench, run: Run, status: str, reason: str) -> None:
    bench.add("one", run)
    bench.add("two", CAUGHT)
    assert bench.run() == 1
    found = bench.json()["results"]["one"]
    assert found["status"] == status
    assert reason in found["reason"]


def test_red_that_is_red_in_the_baseline_proves_nothing(bench: Bench) -> None:
    bench.store["baseline"] = run_of(red())
    bench.add("one", run_of(red(), reached=reached("t")))
    assert bench.run() == 1
    assert bench.json()["results"]["one"]["status"] == "missed"
    assert bench.calls[-1][2] == {red().test}
    assert bench.json()["baseline"]["green"] is False


def test_red_baseline_is_a_failure_even_if_all_is_caught(bench: Bench) -> None:
    bench.store["baseline"] = run_of(red(test="test_a.py::test_c[pp2]"))
    bench.add("one", CAUGHT)
    assert bench.run() == 1
    assert bench.json()["results"]["one"]["status"] == "caught"


def test_red_after_the_deadline_still_counts(bench: Bench) -> None:
    bench.add("one", Run(None, 9.0, (red(),), seconds_of={"t": 1.0}, reached=reached("t")))
    assert bench.run() == 0


TEST = red().test
CLEAN = f"{TEST}, sim"


@pytest.mark.parametrize(
    ("clean", "status", "runs"),
    [
        (run_of(passed=(TEST,)), "caught", 3),
        (run_of(red()), "missed", 7),
        (run_of(seconds_of={}), "missed", 7),
    ],
)
def test_what_cpu_cannot_see_is_looked_for_on_sim(
    bench: Bench, capsys: pytest.CaptureFixture[str], clean: Run, status: str, runs: int
) -> None:
    """A test that also fails there without the revert proves nothing."""
    bench.device = "cpu"
    bench.add("one", MISSED)
    bench.store |= {"one, sim": CAUGHT, CLEAN: clean}
    bench.run()
    found = bench.json()["results"]["one"]
    assert found["status"] == status
    assert found["seconds"] == 3 * runs
    assert ("none went red; on device sim: 3 tests" in found["reason"]) == (status == "missed")
    assert len(bench.ran) == 1 + runs
    seen = "assert_kv_balanced (device sim)" in capsys.readouterr().out
    assert seen == (status == "caught")


STALLED = run_of(red(text="req-007", seen_by="EngineStalled"), reached=reached(TEST))


@pytest.mark.parametrize(
    ("again", "status"), [(STALLED, "caught"), (run_of(reached=reached(TEST)), "missed")]
)
def test_what_stalls_must_be_red_twice(bench: Bench, again: Run, status: str) -> None:
    """A busy machine may cause that by itself."""
    bench.device = "cuda"
    bench.add("one", STALLED)
    bench.store["one, again"] = again
    bench.run()
    found = bench.json()["results"]["one"]
    assert found["status"] == status
    attempts = 1 if status == "caught" else 3
    assert bench.ran == ["baseline", *["one", "one, again"] * attempts]
    assert found["seconds"] == 6 * attempts
    assert ("not again with it" in found["reason"]) == (status == "missed")


DEVICE_ORDER = """
id: {name}
patches:
- target: sglang.mod.waits
  edits:
  - match: event.synchronize()
    replacement: ''
"""


def test_what_is_about_device_order_is_looked_for_on_sim_first(bench: Bench) -> None:
    """The same test is run without a revert only once, also if the bench continues later."""
    bench.device = "cpu"
    for name in ("one", "two"):
        (bench.reverts / f"{name}.yaml").write_text(DEVICE_ORDER.format(name=name))
    bench.store |= {"one, sim": CAUGHT, "two, sim": CAUGHT, CLEAN: run_of(passed=(TEST,))}
    bench.store["one"] = bench.store["two"] = MISSED
    assert bench.run() == 0
    assert bench.ran == ["baseline", "one, sim", CLEAN, "two, sim"]
    (bench.reverts / "two.yaml").write_text(DEVICE_ORDER.format(name="three"))
    bench.store["three, sim"] = CAUGHT
    assert bench.run() == 0
    assert bench.ran == ["three, sim"]
    assert bench.run("--fresh") == 0
    assert CLEAN in bench.ran


@pytest.mark.parametrize(
    ("sim", "own", "status", "device"),
    [
        (MISSED, CAUGHT, "caught", ""),
        (MISSED, MISSED, "missed", ""),
        (run_of(status=3), MISSED, "could not run", "sim"),
        (run_of(status=3), CAUGHT, "caught", ""),
    ],
)
def test_where_sim_does_not_see_device_order_the_own_device_is_next(
    bench: Bench, sim: Run, own: Run, status: str, device: str
) -> None:
    bench.device = "cpu"
    (bench.reverts / "one.yaml").write_text(DEVICE_ORDER.format(name="one"))
    bench.store |= {"one, sim": sim, "one": own}
    assert bench.run() == (status != "caught")
    assert bench.ran == ["baseline", "one, sim", "one"]
    found = bench.json()["results"]["one"]
    assert (found["status"], found["device"]) == (status, device)


def test_device_order_on_a_device_that_can_show_it(bench: Bench) -> None:
    (bench.reverts / "one.yaml").write_text(DEVICE_ORDER.format(name="one"))
    bench.store["one"] = CAUGHT
    assert bench.run() == 0
    assert bench.ran == ["baseline", "one"]


def test_asked_for_cpu_is_cpu(bench: Bench) -> None:
    bench.device = "cpu"
    bench.add("one", MISSED)
    assert bench.run("--device", "cpu") == 1
    assert bench.ran == ["baseline", "one"]


def test_what_does_not_apply_is_not_run(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.add("one", CAUGHT)
    bench.add("other", function="ff")
    assert bench.run() == 0
    assert bench.ran == ["baseline", "one"]
    assert "1 of 1 caught, 1 does not apply" in capsys.readouterr().out
    assert "did you mean 'f'" in bench.json()["results"]["other"]["reason"]


def test_nothing_that_applies_is_no_success(bench: Bench) -> None:
    bench.add("other", function="ff")
    assert bench.run() == 1


def test_resumes(bench: Bench) -> None:
    bench.add("one", CAUGHT)
    bench.add("two", MISSED)
    assert bench.run() == 1
    bench.add("three", CAUGHT)
    bench.add("two", CAUGHT, value=3)
    assert bench.run() == 0
    assert bench.ran == ["three", "two"]
    assert bench.run() == 0
    assert bench.ran == []
    assert bench.run("--fresh") == 0
    assert bench.ran == ["baseline", "one", "three", "two"]


def test_what_could_not_run_is_tried_again(bench: Bench) -> None:
    bench.add("one", run_of(status=3))
    assert bench.run() == 1
    bench.store["one"] = CAUGHT
    assert bench.run() == 0
    assert bench.ran == ["one"]


def test_other_versions_start_over_with_what_has_seen_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add("one", CAUGHT)
    assert bench.run() == 0
    make_key: Callable[..., Any] = results.make_key
    monkeypatch.setattr(results, "make_key", lambda *a: {**make_key(*a), "torch": "other"})
    assert bench.run() == 0
    assert [call[:2] for call in bench.calls] == [("baseline", []), ("one", [red().test])]


def test_other_arguments_start_over(bench: Bench) -> None:
    bench.add("one", CAUGHT)
    assert bench.run() == 0
    assert bench.run("--", "-k", "x") == 0
    assert bench.ran == ["baseline", "one"]
    assert bench.json()["key"]["options"]["arguments"] == ["-k", "x"]


def add_four(bench: Bench) -> None:
    for name in ("one", "two", "three"):
        bench.add(name, CAUGHT)
    bench.add("four", CAUGHT, function="g")


BOTH = "baseline with probe"
FOUR = ["four", "one", "three", "two"]


def test_green_probe_is_the_baseline_and_puts_tests_that_get_there_first(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, quick, other = "test_a.py::test_b[pp2]", "test_a.py::test_c[pp2]", "test_z.py::test_z"
    apt = "test_a.py::test_of_something"
    bench.store[BOTH] = run_of(
        reached=(*reached(slow, quick, apt), *reached(other, target="sglang.mod.g")),
        docs={apt: "Of three things (PR 123)."},
        topologies={slow: "pp=2", quick: "pp=2", apt: "pp=2", other: "pp=4"},
        seconds_of={slow: 2.0, quick: 1.0, apt: 3.0, other: 1.0},
    )
    add_four(bench)
    bench.add("five", function="h")
    assert bench.run() == 1
    assert bench.json()["results"]["five"]["status"] == "missed"
    assert bench.json()["baseline"]["probed"]
    assert "baseline green: 4 tests in 3 s, with the probe" in capsys.readouterr().out
    assert {name: skip for name, _, skip in bench.calls} == {
        BOTH: set(),
        "four": {slow, quick, apt},
        **{name: {other} for name in ("one", "two", "three")},
    }
    assert {name: first for name, first, _ in bench.calls} == {
        BOTH: [],
        "four": [other],
        "one": [quick, slow, apt],
        "three": [apt, quick, slow],
        "two": [quick, slow, apt],
    }


def test_nothing_is_left_out_where_something_outside_of_a_test_gets_there(bench: Bench) -> None:
    bench.store[BOTH] = run_of(reached=reached("test_a.py::test_c[pp2]", ""))
    for name in FOUR:
        bench.add(name, CAUGHT)
    assert bench.run() == 0
    assert [call[2] for call in bench.calls] == [set()] * 5


RED_PROBE = run_of(red(), reached=reached("test_a.py::test_c[pp2]"))
HALF: dict[str, Any] = {"topologies": {"t": "", "u": ""}, "seconds_of": {"t": 1.0}}


@pytest.mark.parametrize(
    ("probe", "ran"),
    [
        (RED_PROBE, ["one", "three", "two"]),  # no test reaches the function of four
        (Run(None, 9.0, **HALF), FOUR),
        (Run(3, 9.0, **HALF), FOUR),
        (Run(0, 9.0, **HALF), FOUR),
        (Run(4, 1.0, output="does not apply"), FOUR),
    ],
)
def test_other_than_a_green_probe_is_no_baseline(bench: Bench, probe: Run, ran: list[str]) -> None:
    bench.store[BOTH] = probe
    add_four(bench)
    assert bench.run() == (probe is RED_PROBE)
    assert bench.ran == [BOTH, "baseline", *ran]
    assert not bench.json()["baseline"]["probed"]
    assert bench.json()["baseline"]["green"]


def test_baseline_of_before_is_not_run_again_for_the_probe(bench: Bench) -> None:
    bench.add("one", CAUGHT)
    assert bench.run() == 0
    assert bench.ran == ["baseline", "one"]
    add_four(bench)
    bench.add("one", CAUGHT, value=3)
    bench.store["probe"] = RED_PROBE
    assert bench.run() == 1
    assert bench.ran == ["probe", "one", "three", "two"]
    assert bench.json()["baseline"]["green"]
    bench.add("five", CAUGHT)
    assert bench.run() == 1
    assert bench.ran == ["five"]


def test_ctrl_c_keeps_what_is_done(bench: Bench) -> None:
    bench.add("one", CAUGHT)
    bench.add("two")
    bench.store["two"] = KeyboardInterrupt()
    assert bench.run() == command.INTERRUPTED
    assert list(bench.json()["results"]) == ["one"]
    bench.store["two"] = CAUGHT
    assert bench.run() == 0
    assert bench.ran == ["two"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_termination_keeps_what_is_done_and_leaves_nothing(
    bench: Bench, number: signal.Signals
) -> None:
    bench.add("one", CAUGHT)
    bench.add("two")
    bench.store["two"] = number
    got: list[int] = []
    before = signal.signal(number, lambda *_: got.append(number))
    try:
        assert bench.run() == command.INTERRUPTED
        os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)
    assert got == [number]  # only the second one: the previous handler is back
    assert list(bench.json()["results"]) == ["one"]


def test_page_holds_everything_and_escapes_it(bench: Bench) -> None:
    bench.add("one", run_of(red(text="<script>in f</script>"), reached=reached("t")))
    assert bench.run("--report", "page.html") == 0
    page = (bench.folder / "page.html").read_text()
    assert "&lt;b&gt; &amp; one" in page
    assert "&lt;script&gt;in f&lt;/script&gt;" in page
    assert "<script" not in page
    assert "1 of 1 caught" in page
    assert "http" not in page  # it loads nothing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["unknown revert 'nowhere'", "26883"]),
        (["empty"], ["no revert in this folder"]),
        (["reverts/bad.yaml"], ["reverts/bad.yaml", "'patches' is missing"]),
        (["reverts/syntax.yaml"], ["syntax", "does not parse"]),
        (["same"], ["two reverts have the id 'twice'"]),
        (["reverts/good.yaml", "--pp-size", "two"], ["--pp-size", "'two'"]),
        (["reverts/good.yaml", "--jobs", "0"], ["--jobs", "from 1 up"]),
        (["reverts/good.yaml", "--deadline", "-1"], ["--deadline", "above 0"]),
        (["reverts/good.yaml", "--json", "no/where.json"], ["no/where.json", "does not exist"]),
        (["reverts/good.yaml", "--json", "bad.json"], ["bad.json", "not a file of this command"]),
    ],
)
def test_bad_input(
    bench: Bench, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bench.add("good", CAUGHT)
    (bench.folder / "empty").mkdir()
    (bench.reverts / "bad.yaml").write_text("id: x")
    broken = REVERT.format(name="syntax", function="f", value="(")
    (bench.reverts / "syntax.yaml").write_text(broken)
    (bench.folder / "same").mkdir()
    for file in ("a", "b"):
        text = REVERT.format(name="twice", function="f", value=2)
        (bench.folder / "same" / f"{file}.yaml").write_text(text)
    (bench.folder / "bad.json").write_text('{"schema": 1}')
    assert main(["regressions", *arguments]) == 2
    err = capsys.readouterr().err
    assert [word for word in words if word not in err] == []
    assert bench.calls == []


def test_suite_that_does_not_run_at_all_is_bad_input(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.store["baseline"] = Run(4, 1.0, output="ERROR: unknown option --foo")
    bench.add("one", CAUGHT)
    assert bench.run("--", "--foo") == 2
    assert "unknown option --foo" in capsys.readouterr().err
    assert bench.ran == ["baseline"]


def test_new_regression_is_a_valid_revert_for_the_named_function(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["new-regression", "kv-leak", "--target", "sglang.mod.f", "--pr", "123"]
    assert main([*arguments, "--dir", "reverts"]) == 0
    text = (bench.reverts / "kv-leak.yaml").read_text()
    assert "sglang/mod.py, line 1" in text
    assert "pull/123" in text
    # the template has to be filled in, and works afterwards
    assert main(["regressions", "reverts/kv-leak.yaml", "--json", "r.json"]) == 1
    assert "which is not there" in bench.json()["results"]["kv-leak"]["reason"]
    filled = text.replace("the_statements_of_the_fix()", "x = 1")
    (bench.reverts / "kv-leak.yaml").write_text(filled)
    bench.store["kv-leak"] = CAUGHT
    assert bench.run() == 0
    shaped = "- match:\n      kind: Assign\n      mentions: [x]\n      assigns: x\n"
    before, _, after = filled.partition("- match: |\n      x = 1\n")
    (bench.reverts / "kv-leak.yaml").write_text(before + shaped + after)
    assert bench.run() == 0
    assert bench.ran == ["kv-leak"]
    test = bench.reverts / "test_kv_leak.py"
    compile(test.read_text(), str(test), "exec")
    assert "def test_kv_leak(engine" in test.read_text()
    assert main([*arguments, "--dir", "reverts"]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--target", "sglang.mod.ff"], ["sglang.mod.ff", "did you mean 'f'"]),
        (["x", "--target", "f"], ["not the dotted name of a function"]),
        (["a/b", "--target", "sglang.mod.f"], ["'a/b' is no name"]),
        (["x", "--target", "sglang.mod.f", "--dir", "no"], ["--dir no"]),
        (["x", "--target", "sglang.mod.f", "--pr", "-3"], ["--pr: -3"]),
    ],
)
def test_new_regression_refuses(
    bench: Bench, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-regression", *arguments]) == 2
    err = capsys.readouterr().err
    assert [word for word in words if word not in err] == []
    assert not list(bench.folder.glob("*.yaml"))
