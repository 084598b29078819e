"""Mutants: their ids, samples, reverts and sites; tables, JSON and page of their results."""

from __future__ import annotations

import ast
import json
import random
import re
import tempfile
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_pprank.__main__ import main
from pytest_pprank.bench.judgement import NOT_REACHED, Result, Status, judge
from pytest_pprank.bench.order import Reach, reach_of
from pytest_pprank.bench.results import Bench, load
from pytest_pprank.bench.runs import Options, Red, Run
from pytest_pprank.errors import UsageError
from pytest_pprank.mutants import command, table
from pytest_pprank.mutants.as_revert import case_of, dumped, revert_of
from pytest_pprank.mutants.outcome import Outcome, judged
from pytest_pprank.mutants.page import page
from pytest_pprank.mutants.points import Mutant, mutants_of, sample
from pytest_pprank.mutants.select import selected
from pytest_pprank.mutants.sites import probe_of, site_of
from pytest_pprank.mutants.source import parse
from pytest_pprank.sglang.reverts.apply import edited_in
from pytest_pprank.sglang.reverts.reached import Reached
from pytest_pprank.sglang.reverts.yaml_file import load as load_revert
from pytest_pprank.sglang.static import release

MODULE = '''
class Queue:
    def pop(self, n):
        """Say what it does."""
        if n > 1:
            return self.many(
                n + 1,
            )
        elif n == 1:
            self.last = None
        if not n: return None
        return self.one()

    @property
    def size(self):
        return 1

    @size.setter
    def size(self, value):
        self.n = value


def merge(a, b):
    a.x = b.x
    a.y = b.y
'''


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sglang"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "mod.py").write_text(MODULE)
    monkeypatch.setattr(release, "check_installed", lambda: None)
    monkeypatch.setattr(release, "package_root", lambda: folder)
    monkeypatch.setattr(command, "Runner", FakeRunner)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return folder


class FakeRunner:
    """Tests of `Queue.pop`: "t1" comes to all of it, and sees what changes a comparison."""

    names: ClassVar[list[str]] = []
    skipped: ClassVar[list[frozenset[str]]] = []

    def __init__(self, options: Options, folder: Path, beat: object) -> None:
        assert options.keep
        assert folder.is_dir()
        del beat

    def run(
        self, name: str, revert: str | None = None, *, skip: Iterable[str] = (), **others: object
    ) -> Run:
        assert revert is not None
        edits = [edit for patch in load_revert(Path(revert)).patches for edit in patch.edits]
        self.names.append(name)
        self.skipped.append(frozenset(skip))
        tests = dict.fromkeys(("t1", "t2"), 1.0)
        run = Run(0, 2.0, topologies=dict.fromkeys(tests, "pp=2"), seconds_of=tests)
        if "probe" in name:
            assert others["to_end"]
            sites = (site for edit in edits for site in re.findall(r"'(sglang\S+@\S+)'", edit.text))
            found = (Reached(site, "t1", "call") for site in sites if "Queue" in site)
            return replace(run, reached=tuple(found))
        red = Red("t1", "call", "failed", "assert_kv_balanced", "boom")
        seen = "comparison" in name
        reached = (Reached("x", "t1", "call"),)
        return replace(run, reached=reached, reds=(red,) if seen else (), status=int(seen))

    def stop(self) -> None:
        raise AssertionError("nobody asked for it")

    def is_stopped(self) -> bool:
        return False


def test_mutants_are_probed_judged_and_not_judged_again(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeRunner.names.clear()
    FakeRunner.skipped.clear()
    words = ["mutate", "sglang.mod", "--operators", "comparison,arithmetic,forget-field"]
    words += ["--device", "cpu", "--report", "page.html"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    ids = ["Queue.pop:comparison:1", "Queue.pop:arithmetic:1", "Queue.pop:comparison:2"]
    assert FakeRunner.names == ["baseline with probe", *(f"sglang.mod:{name}" for name in ids)]
    assert FakeRunner.skipped[1:] == [frozenset({"t2"})] * 3
    assert "2 of 3 reached mutants killed (67 %): 1 survived, 2 killed, 2 not reached" in printed
    assert "2.0 s a mutant in the median" in printed
    values = json.loads(Path("page.json").read_text())
    assert values["mutants"]["sglang.mod:Queue.pop:arithmetic:1"]["after"] == "(n - 1)"
    assert "67 %" in Path("page.html").read_text()
    assert main(words) == 0
    assert "2 of 3 reached mutants killed (67 %)" in capsys.readouterr().out
    assert len(FakeRunner.names) == 4  # all were in the file
    # others need a probe, but no baseline
    assert main([*words[:3], "return-value", *words[4:]]) == 0
    assert FakeRunner.names[4] == "probe"
    assert root.is_dir()


def test_no_mutant_begins_after_the_budget(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mutate", "sglang.mod", "--device", "cpu", "--budget", "1e-9"]) == 1
    printed = capsys.readouterr().out
    assert "not run" in printed
    assert root.is_dir()


def all_mutants(root: Path, *specs: str) -> list[Mutant]:
    functions = selected(specs or ["sglang.mod"], root)
    return [mutant for function in functions for mutant in mutants_of(function)]


def test_ids_stay_when_other_lines_move() -> None:
    before = [m.id for f in parse("m", MODULE) for m in mutants_of(f)]
    moved = MODULE.replace("def merge", "def other():\n    return 1 + 1\n\n\ndef merge")
    after = [m.id for f in parse("m", moved) for m in mutants_of(f) if f.name != "other"]
    assert before == after
    assert before[0] == "m:Queue.pop:branch:1"
    assert len(set(before)) == len(before)


def test_functions_are_selected(root: Path) -> None:
    def names(*specs: str) -> list[str]:
        return [function.name for function in selected(specs, root)]

    assert names("sglang.mod") == ["Queue.pop", "merge"]  # not the property with two functions
    assert names("sglang.mod:Queue") == ["Queue.pop"]
    assert names("sglang.mod:merge", "sglang.mod") == ["merge", "Queue.pop"]
    assert names() == []  # none of the default modules is there


def test_mutants_are_chosen_by_their_ids(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = "sglang.mod:Queue.pop:branch:1", "sglang.mod:merge:forget-field:2"
    assert main(["mutate", first, second, "--list", "--save", "out"]) == 0
    printed = capsys.readouterr().out
    assert [line.partition(" ")[0] for line in printed.splitlines()] == [first, second, "2"]
    files = sorted(Path("out").iterdir())
    assert [load_revert(file).id for file in files] == [first, second]
    assert main(["mutate", first, "sglang.mod:merge", "--list"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 4  # it, both of merge, the summary
    assert root.is_dir()


def test_a_sample_is_drawn_by_its_seed(root: Path) -> None:
    found = all_mutants(root)
    assert sample(found, None, 0) == found
    assert sample(found, 10_000, 0) == found
    first = sample(found, 5, 3)
    assert len(first) == 5
    assert first == sample(found, 5, 3)
    assert first != sample(found, 5, 4)
    assert first == sorted(first, key=found.index)


def test_every_mutant_is_a_revert_of_one_place(root: Path, tmp_path: Path) -> None:
    found = all_mutants(root)
    assert len(found) > 15
    for mutant in found:
        case = case_of(mutant, tmp_path, root)
        assert not case.misfit
        assert load_revert(Path(case.spec)) == case.revert == revert_of(mutant)
        assert case.present == (site_of(mutant),)


def test_a_mutant_of_other_source_does_not_fit(root: Path, tmp_path: Path) -> None:
    mutant = next(m for m in all_mutants(root) if m.operator == "arithmetic")
    (root / "mod.py").write_text(MODULE.replace("n + 1", "n + 2"))
    misfit = case_of(mutant, tmp_path, root).misfit
    assert "edit 1 looks for `n + 1` in row 4, column 16, which is not there" in misfit


@pytest.mark.parametrize(
    ("match", "wrong"),
    [
        ("{at: [1, 2, 3], text: x}", "at is [row, column, end row, end column]"),
        ("{at: [1, 2, 3, -4], text: x}", "each from 0, not [1, 2, 3, -4]"),
        ("{at: [1, 2, 3, 4]}", "'text' is missing"),
        ("{at: [1, 2, 3, 4], text: x, whole: 1}", "whole is true or false, not 1"),
        ("{at: [1, 2, 3, 4], text: x, hole: true}", "unknown key 'hole'"),
    ],
)
def test_a_wrong_place_in_a_file(tmp_path: Path, match: str, wrong: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"patches:\n- target: a.b\n  edits:\n  - match: {match}\n")
    with pytest.raises(UsageError) as error:
        load_revert(file)
    assert wrong in str(error.value)


def test_the_probe_notes_each_site_and_changes_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = all_mutants(root, "sglang.mod:Queue.pop")
    random.Random(1).shuffle(found)
    file = tmp_path / "probe.yaml"
    file.write_text(dumped(probe_of(found)))
    probe = load_revert(file)
    (edited,) = edited_in(probe, root)
    noted: list[str] = []
    monkeypatch.setattr("pytest_pprank.sglang.reverts.reached.note", noted.append)

    class Queue:
        last = "?"

        def many(self, n: int) -> str:
            return f"many {n}"

        def one(self) -> str:
            return "one"

    scope: dict[str, Any] = {}
    edited.after.decorator_list = []
    exec(compile(ast.Module([edited.after], []), "x", "exec"), scope)

    def sites(n: int) -> tuple[object, set[str]]:
        noted.clear()
        result = scope["pop"](Queue(), n)
        return result, {site.rpartition("@")[2] for site in noted}

    many, of_many = sites(5)
    one, of_one = sites(1)
    none, of_none = sites(0)
    assert (many, one, none) == ("many 6", "one", None)
    assert of_many == {"2,8", "3,12"}
    assert of_one == {"2,8", "6,8", "7,12", "8,8", "9,8"}
    assert of_none == {"2,8", "6,8", "8,8"}


def reach(**values: Any) -> Reach:
    return Reach(**{"topologies": {"a1": "A", "a2": "A", "b": "B"}, **values})


def test_only_tests_that_come_to_a_mutant_run(root: Path, tmp_path: Path) -> None:
    case = case_of(all_mutants(root)[0], tmp_path, root)
    (site,) = case.present
    called = reach(tests_of={site: ("a1",)})
    assert called.untouched(case) == {"a2", "b"}
    assert called.first(case) == ["a1"]
    # what a set-up has made may be used by later tests of the same processes
    set_up = reach(tests_of={site: ("a1",)}, in_setup={site: ("a1",)})
    assert set_up.untouched(case) == {"b"}
    # code outside of tests: nothing is known
    assert reach(tests_of={site: ("",)}).untouched(case) == set()


def test_few_of_many_tests_run_the_fast_ones_first(root: Path, tmp_path: Path) -> None:
    mutant = all_mutants(root)[0]
    found = reach(
        tests_of={site_of(mutant): ("a2",)},
        in_setup={site_of(mutant): ("a2",)},
        topologies={"a1": "A", "a2": "A", "a3": "A", "b": "B"},
        seconds_of={"a1": 2.0, "a2": 9.0, "a3": 1.0},
    )
    ran = [
        found.topologies.keys() - found.untouched(case_of(mutant, tmp_path, root, most))
        for most in (1, 2, None)
    ]
    assert ran == [{"a2"}, {"a2", "a3"}, {"a1", "a2", "a3"}]


def test_a_probe_tells_a_set_up_from_a_call() -> None:
    notes = (Reached("s", "a", "setup"), Reached("s", "b", "call"), Reached("t", "b", "call"))
    found = reach_of(Run(0, 1.0, reached=notes))
    assert found.tests_of == {"s": ("a", "b"), "t": ("b",)}
    assert found.in_setup == {"s": ("a",)}


def test_a_group_that_does_not_start_is_seen(root: Path, tmp_path: Path) -> None:
    case = case_of(all_mutants(root)[0], tmp_path, root)
    red = Red("a1", "setup", "worker group could not start", "worker group could not start", "x")
    run = Run(1, 1.0, (red,), topologies={"a1": "A"}, seconds_of={"a1": 1.0})
    assert judge(case, run, frozenset()).status is Status.FAILED
    reached = Run(**{**vars(run), "reached": (Reached(case.present[0], "", ""),)})
    assert judge(case, reached, frozenset()).status is Status.CAUGHT


def result(mutant: Mutant, status: Status, **values: Any) -> Result:
    return Result(mutant.id, "d", "t", status, **values)


def results_of(mutants: list[Mutant]) -> dict[str, Result]:
    first, second, third, fourth, fifth, *_ = mutants
    found = [
        result(first, Status.CAUGHT, seconds=4.0, test="t", seen_by="assert_kv_balanced"),
        result(second, Status.MISSED, seconds=8.0, reason="3 tests get there", reached=True),
        result(third, Status.MISSED, reason=NOT_REACHED),
        result(fourth, Status.HUNG, seconds=30.0, reason="over its deadline"),
        result(fifth, Status.MISFIT, reason="does not compile"),
    ]
    return {each.id: each for each in found}


def test_outcomes_and_tables(root: Path) -> None:
    mutants = all_mutants(root)[:6]
    found = judged(mutants, results_of(mutants))
    assert [each.outcome for each in found] == [
        Outcome.KILLED,
        Outcome.SURVIVED,
        Outcome.NOT_REACHED,
        Outcome.HUNG,
        Outcome.FAILED,
        Outcome.NOT_RUN,
    ]
    rows = table.rows(found, lambda each: each.mutant.module)
    assert rows == [
        ("sglang.mod", "6", "1", "1", "1", "1", "1", "50"),
        ("all", "6", "1", "1", "1", "1", "1", "50"),
    ]
    text = "\n".join(table.tables(found))
    assert "not reached  score %" in text
    assert table.summary(found, 50).startswith("1 of 2 reached mutants killed (50 %): 1 survived")
    assert "8.0 s a mutant in the median" in table.summary(found, 50)
    line = table.line(found[0])
    assert line.startswith("killed           4.0 s  sglang.mod:Queue.pop:")
    assert line.endswith("assert_kv_balanced")


def test_the_page_has_survivors_in_place(root: Path) -> None:
    mutants = all_mutants(root)
    found = judged(mutants, results_of(mutants))
    options = {"arguments": [], "sizes": "2", "device": "cpu"}
    bench = Bench({"sglang": "0.5.23 abc", "options": options})
    text = page(bench, found)
    assert "Mutants of SGLang 0.5.23" in text
    assert "the stock suite" in text
    below = text.index("if n &gt; 1:")
    assert below < text.index('class="m survived"') < text.index("def merge(")
    assert text.index('class="m survived"') < text.index('class="m killed"')  # on the same line


def test_the_file_holds_mutants_and_results(root: Path, tmp_path: Path) -> None:
    mutants = all_mutants(root)
    bench = Bench({"k": 1}, results=results_of(mutants), mutants={"id": {"operator": "branch"}})
    file = tmp_path / "x.json"
    bench.save(file)
    again = load(file, {"k": 1}, fresh=False)
    assert again.mutants == bench.mutants
    assert again.results == bench.results
    assert json.loads(file.read_text())["mutants"] == {"id": {"operator": "branch"}}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("sglang.nod", "sglang.nod: the installed sglang has no such module (did you mean 'mod'"),
        ("torch.x", "torch.x: not a module of sglang"),
        (
            "sglang.mod:Queue.push",
            "has no function or class 'Queue.push' (did you mean 'Queue.pop'",
        ),
        ("sglang.mod:", "sglang.mod:: a function or class is missing behind the colon"),
        ("sglang.mod --operators drop-sent", "no operator 'drop-sent' (did you mean 'drop-send'"),
        ("sglang.mod --operators drop-send", "there is no mutant of these functions and operators"),
        ("sglang.mod:merge:branch:9", "sglang.mod:merge:branch:9: there is no such mutant"),
        ("sglang.mod --save sglang/mod.py/x", "--save sglang/mod.py/x: Not a directory"),
        ("sglang.mod --sample 0", "--sample: 0 is not a number of mutants from 1 up"),
        ("sglang.mod --most-tests 0", "--most-tests: 0 is not a number of tests from 1 up"),
        ("sglang.mod --budget -1", "--budget: -1.0 is not a number of seconds above 0"),
        ("sglang.mod --budget nan", "--budget: nan is not a number of seconds above 0"),
        ("sglang.mod --jobs 0", "--jobs: 0 is not a number of runs from 1 up"),
        ("sglang.mod --tests nowhere.py", "--tests: there is no nowhere.py"),
        ("sglang.mod --json no/x.json", "the folder no does not exist"),
    ],
)
def test_bad_input(root: Path, capsys: pytest.CaptureFixture[str], words: str, error: str) -> None:
    assert main(["mutate", *words.split()]) == 2
    assert error in capsys.readouterr().err
    assert root.is_dir()


def test_the_list_runs_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "mod.py").write_text(
        MODULE
        + textwrap.dedent("""
        def log(x):
            logger.info(x + 1)
        """)
    )
    assert main(["mutate", "sglang.mod", "--list", "--operators", "arithmetic,branch"]) == 0
    printed = capsys.readouterr().out
    assert "sglang.mod:Queue.pop:arithmetic:1  line 7: n + 1 -> n - 1" in printed
    assert "1 more are equivalent: logging 1" in printed
    assert "keep-stale" not in printed
