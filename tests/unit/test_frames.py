"""Whose code a frame runs, wherever this plugin is installed, whatever its modules are called."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pytest_pprank
from pytest_pprank import frames
from pytest_pprank.frames import Folders, Owner
from pytest_pprank.report.stacks import trim_stacks

PACKAGE = Path(pytest_pprank.__file__).parent


def folders(package: Path) -> Folders:
    return Folders(str(package), "/x/site-packages/torch", ["/x/site-packages/_pytest"], ["/x/lib"])


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("rank/handle.py", Owner.PLUGIN),
        ("any/module/that/comes.py", Owner.PLUGIN),
        ("suite/test_generate.py", Owner.CALLER),
        ("/x/site-packages/torch/nn/modules/module.py", Owner.TORCH),
        ("/x/site-packages/torchvision/ops.py", Owner.CALLER),
        ("/x/site-packages/_pytest/python.py", Owner.PYTEST),
        ("/x/lib/threading.py", Owner.LIBRARY),
        ("/x/lib/site-packages/sglang/srt/managers/scheduler.py", Owner.CALLER),
        ("/x/site-packages/typing_extensions.py", Owner.LIBRARY),
        ("<frozen importlib._bootstrap>", Owner.LIBRARY),
        ("<string>", Owner.LIBRARY),
        ("<doctest README.md[0]>", Owner.CALLER),
        ("/home/me/test_it.py", Owner.CALLER),
        ("/home/me/pytest_pprank/test_it.py", Owner.CALLER),
    ],
)
@pytest.mark.parametrize("package", ["/x/site-packages/pytest_pprank", "/src/checkout/renamed"])
def test_owner(file: str, owner: Owner, package: str) -> None:
    path = file if file.startswith(("/", "<")) else f"{package}/{file}"
    assert folders(Path(package)).owner_of(path) is owner


def test_what_starts_ranks_only_calls() -> None:
    there = folders(Path("/p"))
    assert there.only_calls("/p/launch/elastic.py")
    assert there.only_calls("/x/lib/contextlib.py")
    assert not there.only_calls("/p/host/main.py")
    assert not there.only_calls("/home/me/test_it.py")


@pytest.mark.parametrize("folder", [frames.SUITE, frames.LAUNCH, frames.RECORD])
def test_folders_with_rules_are_there(folder: str) -> None:
    assert (PACKAGE / folder / "__init__.py").is_file()


def _module(path: Path, source: str) -> ModuleType:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a package in another place, for which this plugin's filters are set up."""
    package = tmp_path / "elsewhere" / "other_name"
    monkeypatch.setattr(frames, "folders", lambda: folders(package))
    return package


def test_line_of_the_caller_in_a_package_that_was_moved(moved: Path, tmp_path: Path) -> None:
    inner = _module(moved / "deep" / "er" / "inner.py", "import sys\ndef f(g): return g()\n")
    starts = _module(moved / "launch" / "starts.py", "def f(g): return g()\n")
    test = _module(tmp_path / "test_it.py", "def f(*gs): return gs[0](lambda: gs[1](gs[2]))\n")

    def own_frame() -> object:
        frame = sys._getframe(1)
        return frames.caller(frame, Owner.PLUGIN).f_code.co_filename

    assert test.f(starts.f, inner.f, own_frame) == str(tmp_path / "test_it.py")
    assert test.f(inner.f, starts.f, own_frame) == str(tmp_path / "test_it.py")


def test_dump_of_a_package_that_was_moved(moved: Path) -> None:
    def frame(path: str, name: str) -> str:
        return f'  File "{moved / path}", line 3 in {name}'

    shown = trim_stacks(
        "\n".join(
            [
                "Thread 0x1 (most recent call first):",
                '  File "/x/lib/socket.py", line 1 in recv',
                frame("anywhere/at_all.py", "_pprank_service"),
                "",
                "Current thread 0x2 (most recent call first):",
                frame("oplog/record/hooks.py", "wrapper"),
                frame("rank/handle.py", "barrier"),
                '  File "/home/me/test_it.py", line 8 in test_it',
                '  File "/x/site-packages/_pytest/python.py", line 1 in pytest_pyfunc_call',
            ]
        )
    )
    assert "socket" not in shown
    assert "hooks.py" not in shown
    assert [line.rsplit(" ", 1)[1] for line in shown.splitlines()[1:]] == ["barrier", "test_it"]


@pytest.mark.usefixtures("moved")
def test_thread_of_somebody_else_with_that_name_is_shown() -> None:
    text = 'Thread 0x1 (most recent call first):\n  File "/a.py", line 1 in _pprank_service'
    assert "_pprank_service" in trim_stacks(text)


def test_threads_of_ours_have_that_name() -> None:
    """Threads that live during a test have it: else each dump of a hang would begin with them."""
    for place in ("host/link.py", "faults/late_sends.py"):
        assert f"target=self.{frames.SERVICE}" in (PACKAGE / place).read_text()


def test_this_installation() -> None:
    assert frames.owner_of(os.__file__) is Owner.LIBRARY
    assert frames.owner_of(pytest.__file__) is Owner.PYTEST
    assert frames.owner_of(frames.__file__) is Owner.PLUGIN
    assert frames.owner_of(__file__) is Owner.CALLER
