"""The fork server, what it imports, and what happens if forking from it would be unsafe."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.errors import SEE_DOCTOR, GroupError
from pytest_pprank.launch.client import LauncherClient

if TYPE_CHECKING:
    from tests.conftest import Runner

Launch = Callable[..., LauncherClient]

DEADLINE = 120


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Start a launcher that preloads modules written by the test."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    launchers: list[LauncherClient] = []

    def start(*preload: str, optional: Sequence[str] = (), **modules: str) -> LauncherClient:
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        launchers.append(LauncherClient(preload, optional))
        return launchers[-1]

    yield start
    for launcher in launchers:
        launcher.close()
        assert not launcher.run_dir.exists()
        with pytest.raises(ProcessLookupError):
            os.killpg(launcher.pid, 0)


def test_imports_leave_no_thread_and_no_cuda_context(launch: Launch) -> None:
    preloaded = launch("torch", "pytest", "pytest_pprank.host.preload").wait_preloaded(DEADLINE)
    assert preloaded.modules == ("torch", "pytest", "pytest_pprank.host.preload")
    assert (len(preloaded.threads), preloaded.cuda) == (1, "")
    assert (preloaded.start_method, preloaded.reason) == ("forkserver", "")


def test_torch_is_imported_once_for_launcher_and_fork_server(
    launch: Launch, tmp_path: Path
) -> None:
    found = tmp_path / "found"
    source = f"import sys; open({str(found)!r}, 'w').write(str('torch' in sys.modules))"
    launch("looks", looks=source).wait_preloaded(DEADLINE)
    assert found.read_text() == "True"


def test_a_thread_left_behind_means_spawn(launch: Launch) -> None:
    source = (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    preloaded = launch("leaves_thread", leaves_thread=source).wait_preloaded(DEADLINE)
    assert preloaded.start_method == "spawn"
    assert "1 thread(s)" in preloaded.reason


def test_an_import_that_fails_is_told_with_its_traceback(launch: Launch) -> None:
    broken = "raise RuntimeError('broken on purpose')"
    preloaded = launch("broken", "json", broken=broken).wait_preloaded(DEADLINE)
    assert "broken on purpose" in preloaded.failures["broken"]
    assert "broken.py" in preloaded.failures["broken"]
    assert preloaded.modules == ("json",)


def test_an_optional_import_may_fail(launch: Launch) -> None:
    preloaded = launch("json", optional=["no_such_module"]).wait_preloaded(DEADLINE)
    assert preloaded.failures == {}


def test_a_fork_server_that_dies_means_spawn(launch: Launch) -> None:
    preloaded = launch("dies", dies="import os; os._exit(3)").wait_preloaded(DEADLINE)
    assert preloaded.start_method == "spawn"
    assert "died" in preloaded.reason


def test_a_launcher_that_dies_is_an_error_with_its_log(launch: Launch) -> None:
    launcher = launch("json")
    os.kill(launcher.pid, 9)
    with pytest.raises(GroupError, match="launcher process") as error:
        launcher.wait_preloaded(DEADLINE)
    assert str(error.value).endswith(SEE_DOCTOR)


def test_methods_are_named_as_torch_names_them() -> None:
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    from pytest_pprank.launch import elastic

    def record() -> str:
        name: str = dynamic_rendezvous.get_method_name()
        return name

    def method() -> str:
        return record()

    assert method() == "method"
    elastic.use_fast_method_names()
    assert dynamic_rendezvous.get_method_name is elastic._method_name
    assert method() == "method"


def test_spawned_groups_work_and_the_run_says_so_once(runner: Runner) -> None:
    runner.write(
        leaves_thread="""
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        """,
        leaves_thread_plugin="""
        import pytest_pprank.protocol.launcher as launcher
        launcher.PLAIN_PRELOAD += ("leaves_thread",)
        """,
        test_it="""
        import pytest

        def test_first(process_group, pprank):
            assert pprank.gather(pprank.rank) == [0, 1]

        @pytest.mark.pprank(fresh=True)
        def test_in_a_second_group(pprank):
            assert pprank.gather(pprank.rank) == [0, 1]
        """,
    )
    flags = ["--pp-size=2", "--pprank-device=cpu", "-p", "leaves_thread_plugin"]
    path = os.pathsep.join([str(runner.folder), os.environ.get("PYTHONPATH", "")])
    run = runner.run(*flags, env={"PYTHONPATH": path})
    assert run.ret == 0, run.out
    assert run.out.count("\npprank: importing torch once, for all ranks\n") == 1
    assert run.out.count("worker groups are spawned, not forked") == 1
    assert "left 1 thread(s) behind (" in run.out
    assert ", from the import of " in run.out
    assert runner.processes() == {}
