"""An SGLang with renamed methods: the plugin says which, and what needs them; the rest runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_pprank.sglang.events.places import PLACES
from pytest_pprank.sglang.static.installed import installed

RENAMED = ("get_rids", "prepare_for_decode", "get_next_batch_to_run")
"""Methods that a release might rename: here everywhere in SGLang, so that it still works."""
OFF = {"kv", "liveness"}
"""Checks that listen to them in a test without roles; `consensus` is off only in one with roles."""

TESTS = """
    import pytest
    from pytest_pprank import assert_tokens_equal_reference

    def test_the_rest_runs(engine):
        assert_tokens_equal_reference(engine.generate([17, 70]))

    @pytest.mark.pprank(sanitize="kv,forward")
    def test_that_asks_by_name(scheduler):
        pass

    @pytest.mark.pprank(sanitize="-kv,-liveness")
    def test_without_them(scheduler):
        pass
"""


@pytest.fixture(scope="module")
def mutilated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with links to the installed SGLang, except files with a renamed method."""
    here = installed()
    assert here is not None
    folder = tmp_path_factory.mktemp("mutilated")
    names = re.compile(rf"\b({'|'.join(RENAMED)})\b")
    shutil.copytree(here.root, folder / "sglang", copy_function=os.symlink)
    for link in (folder / "sglang").rglob("*.py"):
        text = link.read_text(encoding="utf-8")
        if names.search(text):
            link.unlink()
            link.write_text(names.sub(r"\1_of_tomorrow", text), encoding="utf-8")
    return folder


def run(mutilated: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(mutilated)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_seams_says_what_is_missing(mutilated: Path, tmp_path: Path) -> None:
    done = run(mutilated, tmp_path, "pytest_pprank", "seams", "--json")
    report = json.loads(done.stdout)
    assert report["sglang"]["root"] == str(mutilated / "sglang")
    lacks = {place["name"]: place["lacks"] for place in report["places"] if place["lacks"]}
    assert lacks == {
        "consensus_local": ["SchedulerPPMixin.get_rids"],
        "prepare_for_decode": ["ScheduleBatch.prepare_for_decode"],
        "schedule": ["Scheduler.get_next_batch_to_run"],
    }
    assert done.returncode == 1


def test_what_needs_them_is_off_and_the_rest_runs(mutilated: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "\n".join(line.removeprefix("    ") for line in TESTS.splitlines())
    )
    report = tmp_path / "report.xml"
    options = ["--pp-size", "2", "--pprank-device", "cpu", "-rA", f"--junitxml={report}"]
    done = run(mutilated, tmp_path, "pytest", "-p", "pytest_pprank", *options)
    output = done.stdout
    assert re.search(r"1 failed, 2 passed", output), output
    header, _, rest = output.partition("collected 3 items")
    has_no = f"SGLang .* \\({mutilated}/sglang.*\\) has no "
    assert re.search(rf"pprank: kv: off, {has_no}ScheduleBatch.prepare_for_decode\n", header), (
        header
    )
    assert re.search(rf"pprank: consensus: off, {has_no}\S+ \(off for prefill and decode\)", header)
    assert re.search(rf"check off: kv: asked for by name, and off: {has_no}Schedule", rest), rest
    assert re.search(rf"kv: off in 2 tests, {has_no}", rest), rest
    assert re.search(rf"liveness: off in 1 test, {has_no}Scheduler.get_next_batch_to_run", rest)
    assert "consensus: off in" not in rest
    properties = re.findall(r'name="pprank_off" value="(\w+): off', report.read_text())
    assert set(properties) == OFF


def test_files_and_classes_say_the_same_of_the_installed_sglang(tmp_path: Path) -> None:
    read, looked = (
        run(tmp_path, tmp_path, "pytest_pprank", "seams", "--json", *more)
        for more in ([], ["--import"])
    )
    assert read.returncode == 0, read.stdout
    places = [
        json.loads(done.stdout[done.stdout.index("{") :])["places"] for done in (read, looked)
    ]
    assert places[0] == places[1]
    assert len(places[0]) == len(PLACES)
