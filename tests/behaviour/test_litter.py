"""However a run ends, it leaves no process and no folder."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

SOURCE = """
import pytest, time

def test_first(pprank): pass

@pytest.mark.pprank(timeout=1000)
def test_stuck(process_group, pprank):
    import torch, torch.distributed as dist
    pprank.barrier()
    if pprank.rank == 0:
        open("stuck", "w").close()
    dist.recv(torch.empty(1), src=1 - pprank.rank)
"""


@pytest.fixture
def own_tmp():
    """A temporary folder for the run alone, short enough for the unix sockets in it."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def stuck(runner, tmp_path, own_tmp):
    """A run whose ranks are inside a collective for ever."""
    runner.write(test_it=SOURCE)
    flags = ["--pp-size=2", "--pprank-device=cpu"]
    with runner.popen("-v", *flags, env={"TMPDIR": str(own_tmp)}) as process:
        try:
            runner.wait_for(
                lambda: (tmp_path / "stuck").exists() or process.poll() is not None, "it is stuck"
            )
            assert process.poll() is None, process.stdout.read()
            assert len(runner.processes()) >= 4  # controller, launcher, fork server, ranks
            yield process
        finally:
            process.kill()


def assert_clean(runner, own_tmp):
    runner.wait_for(lambda: not runner.processes(), f"these are gone: {runner.processes()}")
    runner.wait_for(lambda: not list(own_tmp.glob("pprank-*")), "the folder is gone")


def test_controller_killed(stuck, runner, own_tmp):
    stuck.kill()
    stuck.wait()
    assert_clean(runner, own_tmp)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_controller_interrupted(stuck, runner, own_tmp, number):
    stuck.send_signal(number)
    out, _ = stuck.communicate(timeout=60)
    assert_clean(runner, own_tmp)
    if number == signal.SIGINT:
        assert stuck.returncode == pytest.ExitCode.INTERRUPTED
        assert "KeyboardInterrupt" in out
        assert "1 passed" in out, out


def test_launcher_killed(stuck, runner, own_tmp):
    (launcher,) = [
        pid for pid, command in runner.processes().items() if "launch.launcher" in command
    ]
    os.kill(launcher, signal.SIGKILL)
    out, _ = stuck.communicate(timeout=120)
    assert "died" in out
    assert_clean(runner, own_tmp)


def test_nothing_in_the_temporary_folder_after_a_good_run(runner, own_tmp):
    runner.write(
        test_it="""
        import tempfile
        def test_it(process_group, pprank):
            tempfile.mkstemp()
            tempfile.mkdtemp()
        """
    )
    shared_memory = set(Path("/dev/shm").iterdir())
    run = runner.run("--pp-size=2", "--pprank-device=cpu", env={"TMPDIR": str(own_tmp)})
    assert run.ret == 0, run.out
    assert [p.name for p in own_tmp.iterdir()] == [f"pytest-of-{_user()}"]
    assert set(Path("/dev/shm").iterdir()) <= shared_memory
    assert tempfile.gettempdir() != str(own_tmp)


def _user():
    import getpass

    return getpass.getuser()
