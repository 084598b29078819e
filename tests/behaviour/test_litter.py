"""However a run ends, it leaves no process and no folder behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_pprank
from pytest_pprank.protocol.launcher import LauncherSpec

if TYPE_CHECKING:
    from tests.conftest import Runner

SOURCE = """
import pytest, time

def test_first(pprank): pass

@pytest.mark.pprank(timeout=1000)
def test_stuck(process_group, pprank):
    import torch, torch.distributed as dist
    pprank.barrier()
    if pprank.rank == 0:
        with open("run", "w") as file:
            file.write(pprank.workdir.parent.name)
        open("stuck", "w").close()
    dist.recv(torch.empty(1), src=1 - pprank.rank)
"""


@pytest.fixture
def own_tmp() -> Iterator[Path]:
    """Create a temporary folder for this run, with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def stuck(runner: Runner, tmp_path: Path, own_tmp: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run whose ranks wait in a collective for ever."""
    runner.write(test_it=SOURCE)
    # a grace period so long that the proven deadlock does not end the run
    flags = ["--pp-size=2", "--pprank-device=cpu", "--pprank-grace=600"]
    with runner.popen("-v", *flags, env={"TMPDIR": str(own_tmp)}) as process:
        try:
            runner.wait_for(
                lambda: (tmp_path / "stuck").exists() or process.poll() is not None, "it is stuck"
            )
            assert process.stdout
            assert process.poll() is None, process.stdout.read()
            assert len(runner.processes()) >= 4  # controller, launcher, fork server, ranks
            run = (tmp_path / "run").read_text()
            assert shared_memory_of(run)
            # what SGLang's Scheduler would create there, and leave behind
            Path(f"/dev/shm/sglang_loads_{run}-g1-pp_0000.shm").touch()
            yield process
        finally:
            process.kill()


def shared_memory_of(run: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"*{run}-*"))


def assert_clean(runner: Runner, own_tmp: Path) -> None:
    runner.wait_for(lambda: not runner.processes(), f"these are gone: {runner.processes()}")
    runner.wait_for(lambda: not list(own_tmp.glob("pprank-*")), "the folder is gone")
    if (runner.folder / "run").exists():
        run = (runner.folder / "run").read_text()
        runner.wait_for(lambda: not shared_memory_of(run), "its shared memory is gone")


def test_controller_killed(stuck: subprocess.Popen[str], runner: Runner, own_tmp: Path) -> None:
    stuck.kill()
    stuck.wait()
    assert_clean(runner, own_tmp)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_controller_gone_before_the_launcher_has_come_up(
    runner: Runner, own_tmp: Path, how: signal.Signals
) -> None:
    """It is killed while it still imports torch, and then finds no controller."""
    runner.write(test_it="def test_it(pprank): pass")
    flags = ["--pp-size=2", "--pprank-device=cpu"]
    with runner.popen("-v", *flags, env={"TMPDIR": str(own_tmp)}) as process:
        runner.wait_for(lambda: list(own_tmp.glob("pprank-*/launcher.log")), "it is started")
        runner.wait_for(lambda: len(runner.processes()) >= 2, "the launcher is there")
        process.send_signal(how)
        process.wait()
    assert_clean(runner, own_tmp)


def test_controller_gone_before_it_has_said_a_word(runner: Runner, own_tmp: Path) -> None:
    """The launcher has nothing but the folder in which it was started."""
    folder = own_tmp / "pprank-run"
    folder.mkdir()
    code = "from pytest_pprank.launch.launcher import main; main()"
    path = str(Path(pytest_pprank.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder,
        env=runner.environment(PYTHONPATH=path),
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=runner.deadline,
    )
    assert_clean(runner, own_tmp)


def test_launcher_that_comes_when_its_folder_has_been_removed(
    runner: Runner, own_tmp: Path
) -> None:
    """Another run does so after the controller was killed; the launcher writes nowhere else."""
    spec = LauncherSpec(("127.0.0.1", 9), "00", str(own_tmp / "pprank-run-gone"), fork=True)
    subprocess.run(
        [sys.executable, "-c", "from pytest_pprank.launch.launcher import main; main()"],
        cwd=own_tmp,
        env=runner.environment(
            PYTHONPATH=str(Path(pytest_pprank.__file__).parents[1]),
            PPRANK_PRELOAD="[[], []]",
            TMPDIR=spec.run_dir,
            TEMP=str(own_tmp),  # Python uses it if there is no TMPDIR
        ),
        input=spec.to_json(),
        text=True,
        check=True,
        timeout=runner.deadline,
    )
    assert not runner.processes()
    assert not list(own_tmp.iterdir())


def test_controller_terminated(stuck: subprocess.Popen[str], runner: Runner, own_tmp: Path) -> None:
    stuck.terminate()
    stuck.wait()
    assert_clean(runner, own_tmp)


def test_interrupted_once_it_reports_and_says_where_the_ranks_were(
    stuck: subprocess.Popen[str], runner: Runner, own_tmp: Path
) -> None:
    stuck.send_signal(signal.SIGINT)
    out, _ = stuck.communicate(timeout=60)
    assert_clean(runner, own_tmp)
    assert stuck.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in out
    assert "1 passed" in out, out
    where = out.partition("where the ranks were")[2]
    assert "rank 0:\ninside call" in where
    assert "in test_stuck" in where.partition("Stacks of ranks 0,1")[2]


def test_interrupted_twice_it_ends_at_once(
    stuck: subprocess.Popen[str], runner: Runner, own_tmp: Path
) -> None:
    stuck.send_signal(signal.SIGINT)
    # the second signal comes while the first is handled: both ranks are asked for their stacks
    stuck.send_signal(signal.SIGINT)
    stuck.communicate(timeout=60)
    assert_clean(runner, own_tmp)
    assert stuck.returncode != 0


def test_all_killed_at_once_then_the_next_run_removes_what_is_left(
    stuck: subprocess.Popen[str], runner: Runner, own_tmp: Path
) -> None:
    for pid in {stuck.pid, *runner.processes()}:
        os.kill(pid, signal.SIGKILL)
    stuck.wait()
    runner.wait_for(lambda: not runner.processes(), "all are gone")
    killed = (runner.folder / "run").read_text()
    assert (own_tmp / killed).exists()
    assert shared_memory_of(killed)
    runner.write(test_other="def test_it(pprank): pass")
    run = runner.run(
        "--pp-size=2", "--pprank-device=cpu", "test_other.py", env={"TMPDIR": str(own_tmp)}
    )
    assert run.counts() == {"passed": 1}
    assert_clean(runner, own_tmp)


def test_another_run_leaves_the_folder_of_one_under_way(
    stuck: subprocess.Popen[str], runner: Runner, own_tmp: Path
) -> None:
    runner.write(test_other="def test_it(pprank): pass")
    flags = ["--pp-size=2", "--pprank-device=cpu", "test_other.py"]
    run = runner.run(*flags, env={"TMPDIR": str(own_tmp)})
    assert run.counts() == {"passed": 1}
    under_way = (runner.folder / "run").read_text()
    assert [path.name for path in own_tmp.glob("pprank-*")] == [under_way]
    assert shared_memory_of(under_way)
    stuck.kill()
    stuck.wait()
    assert_clean(runner, own_tmp)


LEAVES = """
import os, socket, struct
from pytest_pprank.launch.client import LauncherClient

launcher = LauncherClient(["slow"])
while launcher.channel is None:
    launcher.next_rank(0.1)
for number in range(20_000):
    (launcher.run_dir / f"{number}.txt").touch()
# as if something of what the launcher has said were not read yet: it hears of it when it sends
channel = socket.socket(fileno=os.dup(launcher.channel.fileno()))
channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
os._exit(0)
"""


def test_launcher_that_speaks_to_a_controller_that_is_gone(runner: Runner, own_tmp: Path) -> None:
    """Its main thread fails while the other thread removes the folder."""
    runner.write(slow="import time; time.sleep(60)")
    path = os.pathsep.join([str(runner.folder), str(Path(pytest_pprank.__file__).parents[1])])
    subprocess.run(
        [sys.executable, "-c", LEAVES],
        env=runner.environment(TMPDIR=str(own_tmp), PYTHONPATH=path),
        check=True,
        timeout=runner.deadline,
    )
    assert_clean(runner, own_tmp)


CRASH = """
import pytest
import pytest_pprank.controller.test_run as test_run

def broken(self):
    raise ZeroDivisionError("a defect of the plugin")

test_run.TestRun.wait = broken
"""


def test_a_crash_of_the_plugin(runner: Runner, own_tmp: Path) -> None:
    runner.write(conftest=CRASH, test_it="def test_it(pprank): pass")
    run = runner.run("--pp-size=2", "--pprank-device=cpu", env={"TMPDIR": str(own_tmp)})
    assert run.ret == pytest.ExitCode.INTERNAL_ERROR
    assert "a defect of the plugin" in run.out
    assert_clean(runner, own_tmp)


CHILDREN = """
import os, subprocess, sys
import pytest

SLEEP = [sys.executable, "-c", "import time; time.sleep(10000)"]

@pytest.mark.parametrize("own_session", [False, True])
def test_leaves_children(pprank, own_session):
    for _ in range(10):
        subprocess.Popen(SLEEP, start_new_session=own_session, stdout=subprocess.DEVNULL)
    if pprank.rank == 1:
        os._exit(1)
    pprank.barrier()

def test_leaves_children_and_passes(pprank):
    subprocess.Popen(SLEEP, start_new_session=True)
"""


def test_children_of_ranks_are_ended_wherever_they_went(runner: Runner, own_tmp: Path) -> None:
    runner.write(test_it=CHILDREN)
    run = runner.run("--pp-size=2", "--pprank-device=cpu", env={"TMPDIR": str(own_tmp)})
    assert run.counts() == {"failed": 2, "passed": 1}
    assert runner.processes() == {}


def test_launcher_killed(stuck: subprocess.Popen[str], runner: Runner, own_tmp: Path) -> None:
    children = Path(f"/proc/{stuck.pid}/task/{stuck.pid}/children").read_text().split()
    (launcher,) = [pid for pid in runner.processes() if str(pid) in children]
    os.kill(launcher, signal.SIGKILL)
    out, _ = stuck.communicate(timeout=120)
    assert "died" in out
    assert_clean(runner, own_tmp)


def test_nothing_in_the_temporary_folder_after_a_good_run(runner: Runner, own_tmp: Path) -> None:
    runner.write(
        test_it="""
        import multiprocessing, pathlib, tempfile
        def test_it(process_group, pprank):
            tempfile.mkstemp()
            tempfile.mkdtemp()
            run = pprank.workdir.parent.name
            test_it.event = multiprocessing.get_context("spawn").Event()
            assert list(pathlib.Path("/dev/shm").glob(f"sem.{run}-*"))
            pathlib.Path("run").write_text(run)
        """
    )
    run = runner.run("--pp-size=2", "--pprank-device=cpu", env={"TMPDIR": str(own_tmp)})
    assert run.ret == 0, run.out
    assert [p.name for p in own_tmp.iterdir()] == [f"pytest-of-{_user()}"]
    assert not shared_memory_of((runner.folder / "run").read_text())
    assert tempfile.gettempdir() != str(own_tmp)


def _user() -> str:
    import getpass

    return getpass.getuser()
