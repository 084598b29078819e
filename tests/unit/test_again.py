"""The command in a failure that runs its test again."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_pprank.planning import Plan, plan_of
from pytest_pprank.protocol.schedule import Schedule
from pytest_pprank.report.again import FOLDER, add_again, again
from pytest_pprank.report.text import PlainFailure
from pytest_pprank.topology import Shares, Topology

SOURCE = """
import pytest

class TestIt:
    @pytest.mark.parametrize("how", ["a b", "x[1]", "it's $HOME", "a::b"])
    def test_it(self, pprank, how): pass
"""
QUIET = ["-p", "no:randomly", "--pp-size", "2", "--pprank-device", "cpu"]


@pytest.fixture(autouse=True)
def begun_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/lib/pytest/__main__.py", "-x"])
    monkeypatch.setattr(sys, "executable", "/env/bin/python3")
    monkeypatch.setattr("shutil.which", lambda _: None)


def collect(pytester: pytest.Pytester, *args: str | Path) -> list[tuple[pytest.Item, Plan]]:
    items, _ = pytester.inline_genitems(*args, *QUIET)
    plans = [plan_of(item) for item in items]
    assert plans
    return [(item, plan) for item, plan in zip(items, plans, strict=True) if plan]


def words(pytester: pytest.Pytester, *args: str, **plan: Any) -> list[str]:
    """Return the words of the command after those that are always the same."""
    file = pytester.makepyfile(test_it="def test_it(pprank): pass")
    ((item, own),) = collect(pytester, file, *args)
    command = shlex.split(again(item, replace(own, **plan)))
    assert command[:3] == ["/env/bin/python3", "-m", "pytest"]
    return command[3:]


def test_whole_command(pytester: pytest.Pytester) -> None:
    target = "test_it.py::test_it[pp2]"
    sizes = ["--pp-size", "2", "--pprank-device", "cpu"]
    assert words(pytester) == ["-p", "no:randomly", target, *sizes]


def test_ids_are_quoted(pytester: pytest.Pytester) -> None:
    found = collect(pytester, pytester.makepyfile(test_it=SOURCE))
    commands = [again(item, plan) for item, plan in found]
    assert " 'test_it.py::TestIt::test_it[a b-pp2]' " in commands[0]
    names = ["a b", "x[1]", "it's $HOME", "a::b"]
    assert [shlex.split(command)[5] for command in commands] == [
        f"test_it.py::TestIt::test_it[{name}-pp2]" for name in names
    ]


@pytest.mark.parametrize(
    "given",
    [
        ["--pprank-timeout", "7"],
        ["--pprank-grace", "0.5"],
        ["--pprank-fresh", "test"],
        ["--pprank-sanitize", "p2p,logs"],
        ["--pprank-sanitize=-logs"],
        ["-W", "ignore::UserWarning", "-W", "ignore:a b"],
        ["-o", "xfail_strict=1", "-o", "a=b c"],
        ["-c", "own.ini"],
        ["--rootdir", "."],
        ["--import-mode", "append"],
        ["--runxfail"],
    ],
    ids=" ".join,
)
def test_given_options_are_kept(pytester: pytest.Pytester, given: list[str]) -> None:
    pytester.path.joinpath("own.ini").write_text("[pytest]\n")
    assert words(pytester, *given)[-len(given) :] == given


def test_options_that_do_not_matter_or_are_in_the_ini_file_are_left_out(
    pytester: pytest.Pytester,
) -> None:
    expected = words(pytester)
    pytester.makeini("[pytest]\npprank_timeout = 9\naddopts = -p no:stepwise\n")
    assert words(pytester, "-x", "-k", "it", "--pprank-live", "--maxfail=3") == expected


def test_topology_and_seed_of_the_test_itself(pytester: pytest.Pytester) -> None:
    """A marker may have chosen them, or all of several sizes were run."""
    topology = Topology(3, "sim", None, decode=1)
    perturb = Schedule(7, ("skew", "polls"))
    own = words(pytester, topology=topology, perturb=perturb)[3:]
    assert own == [
        "--pp-size", "3", "--pprank-decode", "1", "--pprank-device", "sim", "--pprank-perturb",
        "7:skew,polls",
    ]  # fmt: skip


def test_ranks_of_a_stage_as_they_were_given(pytester: pytest.Pytester) -> None:
    """A marker may say it for one role, and the option for the other one."""
    unequal = Topology(2, "cpu", None, 1, tp=1, decode_tp=2)
    for given, asked in ((["--tp-size", "2"], ["--tp-size", "2"]), ([], [])):
        own = words(pytester, *given, topology=unequal)
        at = own.index("--pprank-decode")
        assert own[at + 2 : own.index("--pprank-device")] == asked


def test_shares_of_a_stage(pytester: pytest.Pytester) -> None:
    """As they were given; what a marker says need not be repeated."""
    shared = Topology(2, "cpu", None, tp=4, shares=Shares(2, 4))
    for given, asked in (
        ([], []),
        (["--dp-size", "2", "--tp-size", "2"], ["--tp-size", "2", "--dp-size", "2"]),
        (["--ep-size", "4", "--tp-size", "4"], ["--tp-size", "4", "--ep-size", "4"]),
    ):
        own = words(pytester, *given, topology=shared)
        assert own[own.index("--pp-size") + 2 : own.index("--pprank-device")] == asked


def test_reverts_only_for_a_test_that_comes_to_sglang(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\n")
    file = pytester.makepyfile(test_it="def test_it(pprank): pass")
    ((item, plan),) = collect(pytester, file)
    monkeypatch.setattr(item.config.option, "pprank_revert", ["26883", "a b.yaml"])
    monkeypatch.delitem(sys.modules, "sglang", raising=False)
    assert "--pprank-revert" not in again(item, plan)
    sglang = replace(plan, topology=Topology(2, "cpu", {}))
    assert again(item, sglang).endswith(" --pprank-revert 26883 --pprank-revert 'a b.yaml'")


@pytest.mark.parametrize("given", [["-p", "pytest_pprank"], ["-ppytest_pprank"]], ids=" ".join)
def test_plugin_only_if_it_was_named(pytester: pytest.Pytester, given: list[str]) -> None:
    assert words(pytester, *given)[:4] == ["-p", "pytest_pprank", "-p", "no:randomly"]
    assert "pytest_pprank" not in words(pytester)


def test_from_a_folder_below_rootdir(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\n")
    folder = pytester.mkdir("inner")
    (folder / "test_in.py").write_text("def test_it(pprank): pass")
    pytester.makepyfile(test_up="def test_it(pprank): pass")
    monkeypatch.chdir(folder)
    found = collect(pytester, "test_in.py", "../test_up.py")
    assert [item.nodeid for item, _ in found] == [
        "inner/test_in.py::test_it[pp2]",
        "test_up.py::test_it[pp2]",
    ]
    targets = [shlex.split(again(item, plan))[5] for item, plan in found]
    assert targets == ["test_in.py::test_it[pp2]", "../test_up.py::test_it[pp2]"]


@pytest.mark.parametrize("argument", ["mine", "mine.sub", "mine.sub.test_deep"])
def test_module_that_pyargs_has_found(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    for folder in ("lib/mine", "lib/mine/sub", "elsewhere"):
        (pytester.path / folder).mkdir(parents=True)
        (pytester.path / folder / "__init__.py").touch()
    (pytester.path / "lib/mine/sub/test_deep.py").write_text("def test_it(pprank): pass")
    monkeypatch.syspath_prepend(pytester.path / "lib")
    monkeypatch.chdir(pytester.path / "elsewhere")
    ((item, plan),) = collect(pytester, "--pyargs", argument)
    assert shlex.split(again(item, plan))[5:7] == ["--pyargs", "mine.sub.test_deep::test_it[pp2]"]


def test_file_among_the_arguments_of_pyargs(pytester: pytest.Pytester) -> None:
    command = words(pytester, "--pyargs")
    assert command[2] == "test_it.py::test_it[pp2]"
    assert "--pyargs" not in command


@pytest.mark.parametrize(
    ("first", "found", "expected"),
    [
        ("/env/bin/pytest", "/env/bin/pytest", "pytest"),
        ("/env/bin/pytest", "/other/pytest", "/env/bin/pytest"),
        ("/env/bin/pytest", None, "/env/bin/pytest"),
        ("/lib/pytest/__main__.py", "/env/bin/python3", "python -m pytest"),
        ("/lib/pytest/__main__.py", "/other/python", "/env/bin/python3 -m pytest"),
    ],
)
def test_begins_as_the_run_did(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    found: str | None,
    expected: str,
) -> None:
    ((item, plan),) = collect(pytester, pytester.makepyfile("def test_it(pprank): pass"))
    monkeypatch.setattr(sys, "argv", [first])
    monkeypatch.setattr("shutil.which", lambda _: found)
    assert again(item, plan).startswith(f"{expected} -p no:randomly ")


def test_worker_of_xdist(pytester: pytest.Pytester) -> None:
    """It tells nothing if it runs in another folder than the user's, or does not know."""
    ((item, plan),) = collect(pytester, pytester.makepyfile(test_it="def test_it(pprank): pass"))
    config: Any = item.config
    config.workerinput = {"mainargv": ["/env/bin/pytest", "-n2"], FOLDER: str(pytester.path)}
    assert again(item, plan).startswith("/env/bin/pytest -p no:randomly 'test_it.py::")
    config.workerinput[FOLDER] = "/elsewhere"
    assert again(item, plan) == ""
    del config.workerinput[FOLDER]
    assert again(item, plan) == ""


def test_every_failure_has_it(pytester: pytest.Pytester) -> None:
    ((item, plan),) = collect(pytester, pytester.makepyfile("def test_it(pprank): pass"))
    with_section, without = PlainFailure("hung", "text"), PlainFailure("hung", "text")
    with_section.addsection("pprank", "topology: x")
    longreprs: list[Any] = [with_section, without, "[XPASS(strict)] why"]
    failed: list[Any] = [
        pytest.TestReport("x", ("x", 0, "x"), {}, "failed", longrepr, "call")
        for longrepr in longreprs
    ]
    passed = pytest.TestReport("x", ("x", 0, "x"), {}, "passed", None, "setup")
    add_again(item, plan, [passed, *failed])
    line = f"again: {again(item, plan)}"
    assert with_section.sections == [("pprank", f"topology: x\n{line}", "-")]
    assert without.sections == [("pprank", line, "-")]
    assert [report.sections for report in (passed, *failed)] == [[], [], [], [("pprank", line)]]
