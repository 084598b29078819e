"""`tox -e matrix`: which environments, how reports are read, and the text of the page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from matrix import command, junit, runs
from matrix.junit import Outcome
from matrix.page import CAPABILITIES, Row, cell, page
from matrix.product import ROOT, Product
from matrix.releases import environment, locked, older_one
from matrix.runs import Run, Store

from pytest_pprank.provision.lock import locked_versions

NOW = Product("a" * 40, "b" * 40)
REPORT = """<testsuites><testsuite>
<testcase classname="pytest_pprank.suite.test_startup" name="test_a[pp2]"><properties>
  <property name="pprank_off" value="consensus: SGLang 0.5.24 has no x"/></properties></testcase>
<testcase classname="pytest_pprank.suite.test_disagg.TestTwo" name="test_b">
  <skipped type="pytest.xfail" message="known bug lost-room: decode ...&#10;more"/></testcase>
<testcase classname="pytest_pprank.suite.test_disagg.TestTwo" name="test_b">
  <error message="failed on teardown&#10;more">trace</error></testcase>
<testcase classname="pytest_pprank.suite.test_disagg" name="test_c">
  <skipped type="pytest.skip" message="needs xgrammar">x</skipped></testcase>
<testcase classname="pytest_pprank.suite.test_disagg" name="test_d">
  <failure message="wrong">trace&#10;known bug profiler-fails: it ...</failure></testcase>
<testcase classname="pytest_pprank.suite.test_disagg" name="test_e">
  <skipped type="pytest.xfail" message="known bug lost-room: decode"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "suite.xml"
    file.write_text(REPORT)
    return file


def test_releases_are_those_that_setup_knows() -> None:
    assert locked() == locked_versions()


def test_ci_takes_each_older_release_in_turn_and_one_release_for_a_commit() -> None:
    commits = [f"{number:08x}" + "0" * 32 for number in range(0, 2**32, 2**24 + 1)]
    counts = Counter(older_one(commit, "3.11.7") for commit in commits)
    assert sorted(counts) == sorted(locked()[:-1])
    assert min(counts.values()) > len(commits) / len(counts) / 2


def test_ci_takes_no_release_that_this_python_cannot_have(tmp_path: Path) -> None:
    for release, python in (("0.5.9", "3.10"), ("0.5.10", "3.10"), ("0.5.11", "3.11")):
        (tmp_path / f"{release}.txt").write_text(f"# requires-python: >={python}\n")
    commits = ("00000000", "00000001")
    assert {older_one(it, "3.10.5", tmp_path) for it in commits} == {"0.5.9"}
    assert {older_one(it, "3.11.5", tmp_path) for it in commits} == {"0.5.9", "0.5.10"}


@pytest.mark.skipif(shutil.which("tox") is None, reason="tox is not on the path")
def test_each_lock_has_its_tox_environment(tmp_path: Path) -> None:
    names = [environment(release) for release in locked()]
    asked = ["config", "-e", ",".join(names), "-k", "commands_pre", "commands", "constraints"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TOX_")}
    done = subprocess.run(
        ["tox", *asked, "--workdir", tmp_path], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    need = "tox.ini: each lock needs its number and its line in testenv:sglang05{...}"
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{need}"
    sections = dict(zip(names, done.stdout.split("[testenv:")[1:], strict=True))
    for release, name in zip(locked(), names, strict=True):
        assert f"setup --sglang {release} --yes --no-verify" in sections[name], need
        assert "--pyargs pytest_pprank.suite --pp-size 2" in sections[name]
        assert f"constraints = {ROOT}" in sections[name]
    judged = [name for name in names if "known-bugs --judge" in sections[name]]
    assert judged == ["sglang0519"]
    # the dash makes tox ignore pytest's exit code there; not every tox shows it
    (suite,) = (line for line in (ROOT / "tox.ini").read_text().splitlines() if "0519: -" in line)
    assert suite.split() == ["sglang0519:", "-", "{[sglang]reported}"]


def test_a_report_says_how_each_test_ended(report: Path) -> None:
    assert junit.read(report) == [
        Outcome(
            "test_startup", "test_a[pp2]", "passed", off=("consensus: SGLang 0.5.24 has no x",)
        ),
        Outcome("test_disagg", "TestTwo::test_b", "failed", "failed on teardown"),
        Outcome("test_disagg", "test_c", "skipped", "needs xgrammar"),
        Outcome("test_disagg", "test_d", "failed", "wrong", "profiler-fails"),
        Outcome("test_disagg", "test_e", "xfailed", "known bug lost-room: decode", "lost-room"),
    ]


def test_an_expected_failure_without_a_bug_is_known_by_its_first_words(tmp_path: Path) -> None:
    file = tmp_path / "suite.xml"
    file.write_text(REPORT.replace("known bug lost-room: decode", "SGLang 1 2 3 4 5 6 7 8"))
    assert junit.read(file)[-1].bug == "SGLang 1 2 3 4 5 6 7 ..."


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        (["passed"] * 12, "12 passed"),
        (["passed", "xfailed"], "1 passed, 1 xfailed (bug)"),
        (["failed", "passed", "failed"], "2 failed, 1 passed"),
        (["passed", "skipped"], "1 passed, 1 skipped"),
        (["skipped", "skipped"], "not there"),
        ([], "not there"),
    ],
)
def test_a_cell_counts(ways: list[str], expected: str) -> None:
    assert (
        cell([Outcome("m", "t", how, "why", "bug" * (how == "xfailed")) for how in ways])
        == expected
    )


def test_a_cell_says_which_checks_were_off() -> None:
    tests = [Outcome("m", "t", "passed", off=("kv: no", "consensus: no"))]
    assert cell(tests) == "1 passed; off: consensus, kv"


def test_every_file_of_the_suite_is_a_capability() -> None:
    files = {file.stem for file in (ROOT / "pytest_pprank" / "suite").glob("test_*.py")}
    assert files == set(CAPABILITIES)


def run(release: str, device: str = "cpu", code: int | None = 0) -> Run:
    return Run(release, device, *(NOW.commit, NOW.tree), "2026-11-26", code, 9.0, "3.11", "2.13", 2)


@pytest.mark.parametrize(
    ("code", "ways", "verdict", "good"),
    [
        (0, ["passed"], "green", True),
        (0, ["passed", "failed"], "red, as known", True),
        (1, ["failed"], "red", False),
        (1, [], "set-up failed", False),
        (None, [], "no end in 9 s", False),
    ],
)
def test_a_verdict_follows_tox_and_the_report(
    code: int | None, ways: list[str], verdict: str, good: bool
) -> None:
    row = Row(run("0.5.19", code=code), [Outcome("m", "t", how) for how in ways])
    assert (row.verdict, row.good) == (verdict, good)


def test_the_page_has_a_claim_and_names_what_is_not_green(report: Path) -> None:
    rows = [
        Row(run("0.5.23"), junit.read(report)),
        Row(
            run("0.5.22"),
            [Outcome("test_disagg", "test_e", "xfailed", "known bug lost-room: decode")],
        ),
    ]
    text = page(rows, ["0.5.22", "0.5.23"])
    claim = f'<!-- ran: commit="{NOW.commit}" tree="{NOW.tree}" date="2026-11-26" command='
    assert text.startswith(claim)
    (line,) = [it for it in text.splitlines() if it.startswith("| 0.5.23")]
    assert line.startswith("| 0.5.23 | cpu | red, as known | 9 | 1 passed; off: consensus |")
    assert line.endswith("| 2 failed (profiler-fails), 1 xfailed (lost-room), 1 skipped |")
    assert "- 0.5.23 cpu: `test_disagg::test_d`: wrong\n" in text
    assert "- `test_disagg::test_e`: known bug lost-room: decode (all)" in text
    assert "- `test_disagg::test_c`: needs xgrammar (0.5.23 cpu)" in text
    assert "- consensus: SGLang 0.5.24 has no x (0.5.23 cpu)" in text
    assert text.endswith("Not run: 0.5.22 sim, 0.5.23 sim.")


class TestStore:
    """Runs with a script instead of tox."""

    @pytest.fixture
    def tox(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """Create a script that replaces tox; its working folder is the folder of reports."""
        script = tmp_path / "tox.sh"
        real = subprocess.Popen

        def popen(words: list[str], **rest: Any) -> subprocess.Popen[str]:
            return real(["sh", str(script), *words[words.index("-e") + 1 :]], **rest)

        monkeypatch.setattr(subprocess, "Popen", popen)
        monkeypatch.setattr(runs, "end_descendants", lambda: None)  # other tests have some
        return script

    def reports(self, work: Path, script: Path, report: Path, code: int) -> None:
        folder = work / "sglang0523" / "tmp"
        script.write_text(f"echo asked: $*; mkdir -p {folder}; cp {report} {folder}; exit {code}\n")

    def test_a_run_keeps_report_and_log_and_is_found_again(
        self, tmp_path: Path, tox: Path, report: Path
    ) -> None:
        work = tmp_path / "work"
        self.reports(work, tox, report, 1)
        store = Store(work, NOW)
        done = store.run("0.5.23", "sim", 30)
        assert (done.code, done.tree) == (1, NOW.tree)
        log = store.file("0.5.23", "sim", "log").read_text()
        assert log == "asked: sglang0523 -- --pprank-device sim\n"
        assert Store(work, NOW).finished("0.5.23", "sim") == done
        assert Store(work, NOW).finished("0.5.23", "cpu") is None
        assert Store(work, Product("c" * 40, "c" * 40)).finished("0.5.23", "sim") is None

    def test_an_old_report_is_not_taken_for_that_of_this_run(
        self, tmp_path: Path, tox: Path, report: Path
    ) -> None:
        old = tmp_path / "sglang0523" / "tmp" / "suite.xml"
        old.parent.mkdir(parents=True)
        shutil.copy(report, old)
        os.utime(old, (1, 1))
        tox.write_text("exit 1\n")
        store = Store(tmp_path, NOW)
        assert store.run("0.5.23", "cpu", 30).code == 1
        assert store.finished("0.5.23", "cpu") is None
        assert store.ended("0.5.23", "cpu") is not None


SLOW = """
import sys
from pathlib import Path
from matrix import runs
from matrix.command import leave_no_process
from matrix.product import Product
tox, work, deadline = sys.argv[1:]
sys.executable = tox
leave_no_process()
store = runs.Store(Path(work), Product("a" * 40, "b" * 40))
"""
RUN = """
print(store.run("0.5.23", "cpu", float(deadline)).code)
"""


WHILE_IT_STARTS = """
import os, signal, subprocess, time
started = subprocess.Popen.__init__
def is_told(self, *args, **kwargs):
    started(self, *args, **kwargs)
    while not (pid := Path(work).with_name("pid")).exists() or not pid.read_text().endswith("\\n"):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
subprocess.Popen.__init__ = is_told
"""


@pytest.mark.parametrize(
    ("before", "deadline", "ends"),
    [
        ("", "1", 0),
        ("", "1000", 128 + signal.SIGTERM),
        (WHILE_IT_STARTS, "1000", 128 + signal.SIGTERM),
    ],
    ids=["deadline", "terminated", "terminated-while-it-starts"],
)
def test_a_run_ends_with_all_its_processes(
    tmp_path: Path, before: str, deadline: str, ends: int
) -> None:
    pid = tmp_path / "pid"
    tox = tmp_path / "tox.sh"
    tox.write_text(f"#!/bin/sh\nsetsid sleep 1000 & echo $! > {pid}; sleep 1000\n")
    tox.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", SLOW + before + RUN, tox, tmp_path / "work", deadline],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if ends and not before:
            while not (pid.exists() and pid.read_text().endswith("\n")):
                assert process.poll() is None
                time.sleep(0.05)
            process.terminate()
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (ends, "" if ends else "None")
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


class TestCommand:
    @pytest.fixture
    def written(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return the list that receives what would be written into the page."""
        pages: list[str] = []
        monkeypatch.setattr(command, "_write", pages.append)
        monkeypatch.setattr(command, "product", lambda: NOW)
        monkeypatch.setattr(command, "leave_no_process", lambda: None)
        return pages

    def suite(self, monkeypatch: pytest.MonkeyPatch, report: Path, code: int = 0) -> list[str]:
        """Let each run end with `code` and this report; return the list of runs."""
        calls: list[str] = []

        def ended(store: Store, release: str, device: str, _deadline: float) -> Run:
            calls.append(f"{release} {device}")
            (store.work_dir / environment(release)).mkdir(exist_ok=True)
            shutil.copy(report, store.file(release, device, "xml"))
            done = run(release, device, code)
            store.file(release, device, "json").write_text(json.dumps(done.__dict__))
            return done

        monkeypatch.setattr(Store, "run", ended)
        return calls

    def test_runs_are_not_repeated_and_the_page_has_them_all(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: Path, written: list[str]
    ) -> None:
        calls = self.suite(monkeypatch, report)
        work = ["--work-dir", str(tmp_path)]
        assert command.main([*work, "--versions", "0.5.21", "--devices", "cpu"]) == 0
        assert command.main([*work, "--versions", "0.5.23,0.5.21"]) == 0
        assert calls == ["0.5.21 cpu", "0.5.21 sim", "0.5.23 cpu", "0.5.23 sim"]
        assert [it.count("\n| 0.5.2") for it in written] == [1, 4]
        assert command.main([*work, "--versions", "0.5.23", "--devices", "cpu", "--fresh"]) == 0
        assert calls[4:] == ["0.5.23 cpu"]

    @pytest.mark.parametrize("keep", [True, False])
    def test_environments_that_it_has_made_are_removed(
        self,
        keep: bool,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        report: Path,
        written: list[str],
    ) -> None:
        self.suite(monkeypatch, report)
        (tmp_path / "sglang0521").mkdir()
        options = ["--keep"] if keep else []
        command.main(["--work-dir", str(tmp_path), "--versions", "0.5.21,0.5.23", *options])
        assert len(written) == 1
        assert (tmp_path / "sglang0521").exists()
        assert (tmp_path / "sglang0523").exists() is keep

    def test_a_red_run_is_its_exit_code(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: Path, written: list[str]
    ) -> None:
        self.suite(monkeypatch, report, code=1)
        assert command.main(["--work-dir", str(tmp_path), "--versions", "0.5.23"]) == 1
        assert "| red |" in written[0]

    def test_it_claims_nothing_about_what_is_in_no_commit(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        report: Path,
        written: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        calls = self.suite(monkeypatch, report)
        changed = Product(NOW.commit, NOW.tree, ("pytest_pprank/x.py",))
        monkeypatch.setattr(command, "product", lambda: changed)
        work = ["--work-dir", str(tmp_path), "--versions", "0.5.23"]
        assert command.main(work) == 2
        assert "pytest_pprank/x.py: in no commit" in capsys.readouterr().err
        assert calls == []
        assert command.main([*work, "--no-write"]) == 0
        assert written == []

    def test_it_stops_when_the_code_becomes_another_meanwhile(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: Path, written: list[str]
    ) -> None:
        self.suite(monkeypatch, report)
        seen = iter([NOW, Product("c" * 40, "c" * 40)])
        monkeypatch.setattr(command, "product", lambda: next(seen))
        assert command.main(["--work-dir", str(tmp_path), "--versions", "0.5.23"]) == 2
        assert written == []

    def test_a_release_without_a_lock_is_a_usage_error(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            command.main(["--versions", "0.5.99"])
        assert "'0.5.99': there are 0.5.13, " in capsys.readouterr().err
