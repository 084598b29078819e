"""Plugins that write a file about all tests: each test is in it once, whatever its ranks did."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runner

OPTIONS = ("--pp-size=2", "--pprank-device=cpu", "--pprank-lease=off")
SOURCE = """
import os, signal, time
import pytest

try:
    import allure, pytest_html
except ImportError:
    pass

def test_plain():
    pass

def test_passes(pprank, extras, json_metadata, record_property):
    extras.append(pytest_html.extras.text(f"extra of {pprank.rank}"))
    json_metadata["both"] = "said"
    record_property("own", pprank.world_size)
    allure.dynamic.title("a title of its own")
    with allure.step(f"step of {pprank.rank}"):
        allure.attach("content", name="attached")

def test_fails(pprank):
    assert pprank.rank == 0

def test_skips(pprank):
    pytest.skip("no")

@pytest.fixture
def broken(pprank):
    raise ValueError("in setup")

def test_broken_setup(broken):
    pass

@pytest.mark.pprank(timeout=2)
def test_hangs(pprank):
    time.sleep(100)

def test_dies(pprank):
    if pprank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    pprank.barrier()

def test_after(pprank):
    # Its group ends in good order: what the plugins of a killed one would have left is lost.
    pass
"""
CONFTEST = """
import json
import pytest
from pytest_metadata.plugin import metadata_key

def pytest_metadata(metadata, config):
    if hasattr(config, "workerinput") and "pprank" in config.workerinput:
        metadata["of a rank"] = "said there"

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        with open("metadata.json", "w") as file:
            json.dump(session.config.stash[metadata_key], file)
"""
VERDICTS = {
    "test_plain": None,
    "test_passes[pp2]": None,
    "test_skips[pp2]": None,
    "test_fails[pp2]": "failed",
    "test_broken_setup[pp2]": "setup failed",
    "test_hangs[pp2]": "hung",
    "test_dies[pp2]": "rank died",
    "test_after[pp2]": None,
}
PHASES = {name: ["setup", "call", "teardown"] for name in VERDICTS}
PHASES["test_broken_setup[pp2]"] = ["setup", "teardown"]
WRITERS = (
    "--report-log=log.json",
    "--html=report.html",
    "--junitxml=junit.xml",
    "--json-report",
    "--json-report-file=report.json",
    "--alluredir=allure",
    "--clean-alluredir",
    "--metadata",
    "own",
    "said",
)


@dataclass
class Written:
    """What a run has printed and written, and whether it ran without pytest-xdist."""

    out: str
    folder: Path
    alone: bool


@pytest.fixture(
    scope="module", params=[(), ("-pno:xdist",), ("-n2",)], ids=["alone", "without-xdist", "n2"]
)
def run(
    request: pytest.FixtureRequest, module_runner: Runner, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    runner = type(module_runner)(tmp_path_factory.mktemp("run"))
    runner.write(test_it=SOURCE, conftest=CONFTEST)
    run = runner.run(*OPTIONS, *WRITERS, *request.param, env={"GITHUB_ACTIONS": "true"})
    assert " in " in run.out, run.out
    assert run.counts() == {"failed": 3, "passed": 3, "skipped": 1, "error": 1}, run.out
    return Written(run.out, runner.folder, alone=not request.param)


def name_of(nodeid: str) -> str:
    return nodeid.rpartition("::")[2]


def test_junit(run: Written) -> None:
    cases = ElementTree.parse(run.folder / "junit.xml").iter("testcase")
    verdicts = {}
    for case in cases:
        properties = {each.get("name"): each.get("value") for each in case.iter("property")}
        assert case.get("name") not in verdicts
        verdicts[case.get("name")] = properties.get("pprank_verdict")
        assert properties.get("own") == ("2" if case.get("name") == "test_passes[pp2]" else None)
    assert verdicts == VERDICTS


def test_reportlog(run: Written) -> None:
    phases: dict[str, list[str]] = {}
    for line in map(json.loads, (run.folder / "log.json").read_text().splitlines()):
        if line["$report_type"] == "TestReport":
            phases.setdefault(name_of(line["nodeid"]), []).append(line["when"])
    assert phases.pop("test_skips[pp2]") == ["setup", "call", "teardown"]
    assert phases == {name: own for name, own in PHASES.items() if "skips" not in name}


def test_html(run: Written) -> None:
    page = (run.folder / "report.html").read_text()
    found = re.search(r'data-jsonblob="(.*?)"', page, re.DOTALL)
    assert found
    blob = html.unescape(found.group(1))
    rows = json.loads(blob)
    by_name = {name_of(name): own for name, own in rows["tests"].items()}
    assert {name for name in by_name if "setup" not in name} >= set(VERDICTS) - {
        "test_broken_setup[pp2]"
    }
    assert {own["result"] for own in by_name["test_hangs[pp2]"]} == {"Failed"}
    assert "no rank got through within 2 s" in by_name["test_hangs[pp2]"][0]["log"]
    assert "died in call: killed by SIGKILL" in by_name["test_dies[pp2]"][0]["log"]
    extras = [each["content"] for each in by_name["test_passes[pp2]"][0]["extras"]]
    assert len(extras) == 2, extras


def test_json_report(run: Written) -> None:
    report = json.loads((run.folder / "report.json").read_text())
    tests = {name_of(each["nodeid"]): each for each in report["tests"]}
    assert len(report["tests"]) == len(tests)
    for name, phases in PHASES.items():
        assert [phase for phase in ("setup", "call", "teardown") if phase in tests[name]] == phases
    assert tests["test_passes[pp2]"]["metadata"] == {"both": "said"}
    assert {"pprank_verdict": "hung"} in tests["test_hangs[pp2]"]["user_properties"]


def test_metadata(run: Written) -> None:
    metadata = json.loads((run.folder / "metadata.json").read_text())
    assert metadata["own"] == "said"
    assert metadata["of a rank"] == "said there"


def test_allure(run: Written) -> None:
    results = [json.loads(each.read_text()) for each in run.folder.glob("allure/*-result.json")]
    by_test = {each["fullName"].partition("#")[2]: each for each in results}
    assert sorted(by_test) == sorted(name.partition("[")[0] for name in VERDICTS)
    assert len(results) == len(VERDICTS)
    statuses = {name: each["status"] for name, each in by_test.items()}
    assert statuses == {
        "test_plain": "passed",
        "test_passes": "passed",
        "test_skips": "skipped",
        "test_fails": "failed",
        "test_broken_setup": "broken",
        "test_hangs": "broken",
        "test_dies": "broken",
        "test_after": "passed",
    }
    assert by_test["test_fails"]["statusDetails"]["message"].startswith("[rank 1] assert 1 == 0")
    assert "no rank got through" in by_test["test_hangs"]["statusDetails"]["message"]
    passes = by_test["test_passes"]
    assert passes["name"] == "a title of its own"
    assert [each["name"] for each in passes["steps"]] == ["rank 0", "rank 1"]
    for rank, step in enumerate(passes["steps"]):
        (own,) = step["steps"]
        assert own["name"] == f"step of {rank}"
        (attached,) = own["attachments"]
        assert (run.folder / "allure" / attached["source"]).read_text() == "content"
    assert {"name": "ranks", "value": "pp2"} in passes["parameters"]


def test_github_annotations(run: Written) -> None:
    """There is one for each failed call, at its line, from the process that reports."""
    lines = [line for line in run.out.splitlines() if "::error " in line]
    messages = [line[line.index("::error ") :] for line in lines]
    assert len(messages) == 3, run.out
    text = "\n".join(messages)
    assert re.search(r"file=test_it.py,line=22::test_fails\[pp2\]%0A%0A\[rank 1\] assert 1", text)
    assert re.search(r"file=\S*test_it.py,line=\d+::test_hangs\[pp2\]%0A%0Ahung: no rank", text)
    assert re.search(r"file=\S*test_it.py,line=\d+::test_dies\[pp2\]%0A%0Arank died: rank 1", text)
