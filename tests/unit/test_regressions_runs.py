"""What a measured run leaves: events, order, reached functions; and no process."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_pprank import suite
from pytest_pprank.bench import processes, recorder
from pytest_pprank.bench.processes import Child
from pytest_pprank.bench.runs import Options, Runner, read_run
from pytest_pprank.bench.selection import SUITE

MARK = "PPRANK_TEST_MARK"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_ORDERLY_S", 0.5)
    monkeypatch.setattr(processes, "_GONE_S", 0.5)


def start(folder: Path, code: str) -> Child:
    (folder / "child.py").write_text(textwrap.dedent(code))
    command = [sys.executable, str(folder / "child.py")]
    return Child(command, folder=folder, environment=os.environ, mark=(MARK, str(folder)))


def marked(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{MARK}={folder}".encode() in environ:
                found.append(entry.name)
    return found


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_child_that_ends_by_itself(tmp_path: Path) -> None:
    child = start(tmp_path, "print('hello'); raise SystemExit(3)")
    assert child.wait(30) == 3
    assert child.end() == 3
    assert child.output() == "hello\n"


@pytest.mark.usefixtures("impatient")
def test_nothing_stays_of_a_child_that_will_not_end(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        """
        import os, pathlib, signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()  # as launcher and ranks do
            pathlib.Path("up").touch()
        time.sleep(600)
        """,
    )
    wait_for(tmp_path / "up")
    assert len(marked(tmp_path)) == 2
    assert child.wait(0) is None
    assert child.end() < 0
    assert marked(tmp_path) == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Unignore SIGINT: children of a shell's background job ignore it, and pass that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_child_is_asked_first(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        """
        import pathlib, time
        try:
            pathlib.Path("up").touch()
            time.sleep(600)
        except KeyboardInterrupt:
            print("orderly")
        """,
    )
    wait_for(tmp_path / "up")
    assert child.end() == 0
    assert child.output() == "orderly\n"


TESTS = """
import os
import pytest

def assert_good(x):
    assert x > 1

def test_one():
    pass

def test_two():
    value = 1
    assert value == 2

def test_three():
    assert_good(0)

def test_four():
    raise LookupError("nothing there")

@pytest.mark.xfail(reason="known")
def test_five():
    assert 0

@pytest.mark.parametrize("x", ["a b"])
def test_six(x):
    from pytest_pprank.sglang.reverts import reached
    reached.note("sglang.mod.f")
    reached.note("sglang.mod.f")
"""


class Local(Options):
    """Plain tests in a file, without ranks."""

    def command(self, revert: str | None, *, to_end: bool = False) -> list[str]:
        del to_end
        assert revert is None
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            recorder.__name__,
            "-p",
            "no:cacheprovider",
        ]
        return [*command, *self.arguments]


def test_run_is_recorded_in_the_wanted_order(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(TESTS)
    runner = Runner(Local(arguments=(str(file),)), tmp_path)
    run = runner.run("x", first=["test_x.py::test_three"], skip=["test_x.py::test_one"])
    assert run.status == 1, run.output
    assert [test.rpartition(":")[2] for test in run.topologies] == [
        "test_three", "test_two", "test_four", "test_five", "test_six[a b]",
    ]  # fmt: skip
    seen = {red.test.rpartition(":")[2]: (red.verdict, red.seen_by) for red in run.reds}
    assert seen == {
        "test_three": ("failed", "assert_good"),
        "test_two": ("failed", "assert value == 2"),
        "test_four": ("failed", "LookupError"),
    }
    assert [(r.target, r.test, r.phase) for r in run.reached] == [
        ("sglang.mod.f", "test_x.py::test_six[a b]", "call")
    ]
    assert set(run.seconds_of) == set(run.topologies)
    assert run.output == ""


GROUPED = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name[-1])  # as the plugin does with topologies
"""


def test_likely_tests_come_before_others_of_their_topology(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(GROUPED)
    names = ["test_1a", "test_2b", "test_3a", "test_4b", "test_5a"]
    (tmp_path / "test_x.py").write_text("".join(f"def {name}(): pass\n" for name in names))
    runner = Runner(Local(arguments=(str(tmp_path / "test_x.py"),)), tmp_path)
    run = runner.run("x", first=["test_x.py::test_5a", "test_x.py::test_4b"])
    ran = [test.rpartition(":")[2] for test in run.topologies]
    assert ran == ["test_5a", "test_4b", "test_1a", "test_3a", "test_2b"]


@pytest.mark.usefixtures("impatient")
def test_run_over_its_deadline_keeps_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(
        "import time\ndef test_red(): assert 0\n"
        f"def test_slow():\n    open({str(tmp_path / 'up')!r}, 'w')\n    time.sleep(600)\n"
    )
    beats: list[tuple[str, int, int]] = []

    def beat(name: str, done: int, of: int, seconds: float) -> None:
        assert seconds > 0
        beats.append((name, done, of))
        if (tmp_path / "up").exists():
            runner.stop()  # as Ctrl-C and the deadline do

    runner = Runner(Local(arguments=(str(file),)), tmp_path, beat, beat_every=0.1)
    run = runner.run("x")
    assert run.status is None
    assert [red.test for red in run.reds] == ["test_x.py::test_red"]
    assert ("x", 1, 2) in beats


def test_deadline_ends_a_run(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text("import time\ndef test_slow(): time.sleep(600)\n")
    run = Runner(Local(arguments=(str(file),), deadline=0.01), tmp_path).run("x")
    assert run.status is None


def test_collect_errors_and_usage_errors_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text("import nothing_of_this_name\n")
    run = Runner(Local(arguments=(str(file),)), tmp_path).run("x")
    assert "nothing_of_this_name" in run.errors[0]
    run = Runner(Local(arguments=("--no-such-option",)), tmp_path).run("x")
    assert run.status == 4
    assert "--no-such-option" in run.output


def test_half_a_line_is_left_alone(tmp_path: Path) -> None:
    end = json.dumps({"event": "collected", "tests": [{"id": "a", "topology": "", "doc": ""}]})
    (tmp_path / recorder.EVENTS).write_text(f'{end}\n{{"event": "pha')
    assert list(read_run(tmp_path, None, 1.0, "").topologies) == ["a"]


@pytest.mark.parametrize(
    ("verdict", "message", "seen_by"),
    [
        ("hung", "hung: deadlock: ranks 0,1 are still inside call", "hung"),
        ("sanitizer", "sanitizer: p2p: 3 messages were not waited for", "sanitizer p2p"),
        ("failed", "[ranks 0,1] pkg.mod.EngineStalled: nothing moves", "EngineStalled"),
        ("setup failed", "[rank 0] ValueError", "ValueError"),
        ("failed", "AssertionError: assert 1 == 2", "assert"),
        ("failed", "", "failed"),
    ],
)
def test_who_has_seen_it(verdict: str, message: str, seen_by: str) -> None:
    assert recorder._seen_by(verdict, message, message) == seen_by


def test_command_line() -> None:
    options = Options("2,4", "cpu", True, arguments=("-k", "x"))
    command = " ".join(options.command("some.yaml"))
    for words in (
        f"--pyargs {SUITE}",
        "--pp-size 2,4",
        "--pprank-device cpu",
        "--pprank-revert some.yaml",
        f"-p {recorder.__name__}",
    ):
        assert words in command
    assert command.endswith("-k x")
    root = Path(command.partition("--rootdir ")[2].partition(" ")[0])
    assert root in Path(suite.__file__).parents  # else ranks have other ids for its tests
    assert " -x" not in command
    assert " -x" in " ".join(Options().command("a"))
    assert " -x" not in " ".join(Options().command("a", to_end=True))
    assert " -x" not in " ".join(Options().command(None))  # the baseline runs all tests
