"""Concurrent runs on one machine take turns, say so, and leave no files behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_pprank.launch.lease_files import LockFolder
from pytest_pprank.launch.leases import Lease, LeaseQueue, cpu_slots

if TYPE_CHECKING:
    from tests.conftest import Runner

OtherRun = Callable[[Sequence[str]], AbstractContextManager[Lease]]

DEADLINE = 100
FLAGS = ["--pprank-device=cpu", f"--pprank-lease-timeout={DEADLINE}"]
PASSES = """
def test_one(pprank): pass
def test_two(pprank): pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> LockFolder:
    return LockFolder(tmp_path / "pytest-pprank-leases")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"PPRANK_LEASE_DIR": str(tmp_path)}


@pytest.fixture
def other_run(folder: LockFolder) -> OtherRun:
    """Return another run's lease, to be taken in a `with` block."""

    @contextmanager
    def hold(names: Sequence[str]) -> Iterator[Lease]:
        queue = LeaseQueue("the other run", DEADLINE, print, folder=folder)
        lease = queue.acquire(names, len(names))
        try:
            yield lease
        finally:
            lease.release()

    return hold


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.mark.parametrize("worker", ["", "gw0"])
def test_waits_for_cores_says_so_and_runs(
    runner: Runner, env: dict[str, str], other_run: OtherRun, folder: LockFolder, worker: str
) -> None:
    runner.write(test_it=PASSES)
    if worker:
        pytest.importorskip("xdist")
    flags = ["--pp-size=2", *FLAGS, *(["-n1"] if worker else [])]
    with other_run(cpu_slots()) as lease, runner.popen("-v", *flags, env=env) as process:
        try:
            said = runner.read_until(process, "pprank: waiting for 2 of ")
            (ticket,) = folder.names("wait-")
            note = folder.note(ticket)
            assert note
            command = note.command
            lease.release()
            out, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert f"held by pid {os.getpid()} (" in said
    assert "the other run" in said
    assert " ".join(flags) in command
    assert command.endswith(f" [{worker}]") == bool(worker)
    assert process.returncode == 0, out
    assert "waiting" not in out  # printed only once
    assert not folder.path.exists()


def test_gives_up_naming_the_holder(
    runner: Runner, env: dict[str, str], other_run: OtherRun, folder: LockFolder
) -> None:
    runner.write(test_it=PASSES)
    with other_run(cpu_slots()):
        run = runner.run(
            "--pp-size=2", "--pprank-device=cpu", "--pprank-lease-timeout=0.5", env=env
        )
        assert folder.names() == sorted(cpu_slots())
    assert run.ret == 1
    assert "became free within 0.5 s (--pprank-lease-timeout)" in run.failure("test_one[pp2]")
    for test in ("test_one[pp2]", "test_two[pp2]"):
        assert f"held by pid {os.getpid()} (" in run.failure(test)


@pytest.mark.parametrize("what", ["off", "cuda"])
def test_cores_can_be_shared(
    runner: Runner, env: dict[str, str], other_run: OtherRun, what: str
) -> None:
    runner.write(test_it=PASSES)
    with other_run(cpu_slots()):
        run = runner.run("--pp-size=2", "--pprank-device=cpu", f"--pprank-lease={what}", env=env)
    assert run.ret == 0, run.out
    assert "waiting" not in run.out


def test_ranks_see_the_gpus_that_are_free(
    runner: Runner, env: dict[str, str], other_run: OtherRun, folder: LockFolder
) -> None:
    runner.write(
        conftest="""
        from pytest_pprank import devices
        GPUS = tuple(devices.Gpu(f"GPU-{n}", str(n + 4)) for n in range(4))
        devices.visible_gpus = lambda: GPUS
        """,
        test_it="""
        import os
        def test_it(pprank):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
            assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
            assert pprank.device == f"cuda:{pprank.rank}"
            assert {"GPU-1.lock", "GPU-3.lock"} < set(os.listdir("pytest-pprank-leases"))
        """,
    )
    with other_run(["GPU-0", "GPU-2"]):
        env = {**env, "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
        run = runner.run("--pp-size=2", "--pprank-device=cuda", env=env)
        assert run.ret == 0, run.out
        assert folder.names() == ["GPU-0", "GPU-2"]
        run = runner.run(
            "--pp-size=3", "--pprank-device=cuda", "--pprank-lease-timeout=0.5", env=env
        )
        assert "no 3 of GPU-0, GPU-1, GPU-2, GPU-3 became free" in run.failure("test_it[pp3]")


def test_prefill_and_decode_share_gpus_if_asked_to(
    runner: Runner, env: dict[str, str], folder: LockFolder
) -> None:
    runner.write(
        conftest="""
        from pytest_pprank import devices
        GPUS = tuple(devices.Gpu(f"GPU-{n}", str(n + 4)) for n in range(2))
        devices.visible_gpus = lambda: GPUS
        """,
        test_it="""
        import os
        import pytest
        @pytest.mark.pprank(prefill=2, decode=(1, 2))
        def test_it(pprank):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"
            assert pprank.device == f"cuda:{pprank.rank % 2}"
        """,
    )
    few = runner.run("--pprank-device=cuda", "-rs", env=env)
    assert few.counts() == {"skipped": 2}
    assert "4 stages need 4 GPUs, 2 visible here" in few.out
    assert "share GPUs: --pprank-oversubscribe" in few.out
    run = runner.run("--pprank-device=cuda", "--pprank-oversubscribe", env=env)
    assert run.ret == 0, run.out
    assert folder.names() == []


def test_gives_way_to_one_who_waits(
    runner: Runner, env: dict[str, str], folder: LockFolder, tmp_path: Path
) -> None:
    runner.write(
        conftest="""
        from pytest_pprank.launch import leases
        leases.TURN_SECONDS = 0.0
        """,
        test_it="""
        from pathlib import Path
        def test_started(pprank):
            Path("started").touch()
            while not all(pprank.gather(Path("queued").exists())):
                pass
        def test_next(pprank):
            assert not Path("had").exists()
        def test_after_the_other(pprank):
            assert Path("had").exists()
        """,
    )
    messages: list[str] = []
    queue = LeaseQueue("the other run", DEADLINE, messages.append, folder=folder)

    def take_a_turn() -> None:
        lease = queue.acquire(cpu_slots(), len(cpu_slots()))
        (tmp_path / "had").touch()
        lease.release()

    thread = threading.Thread(target=take_a_turn)
    with runner.popen("-v", "--pp-size=2", "--pprank-device=cpu", env=env) as process:
        try:
            runner.wait_for((tmp_path / "started").exists, "the group is up")
            thread.start()
            runner.wait_for(lambda: messages, "the other waits")
            (tmp_path / "queued").touch()
            out, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
            thread.join(DEADLINE)
    assert process.returncode == 0, out
    assert f"held by pid {process.pid} (" in messages[0]
    assert "--pp-size=2" in messages[0]
    assert not folder.path.exists()


def test_two_xdist_workers_on_one_core_run_at_once(runner: Runner, env: dict[str, str]) -> None:
    pytest.importorskip("xdist")
    runner.write(
        test_it="""
        from pathlib import Path
        import pytest
        @pytest.mark.parametrize("name", ["a", "b"])
        def test_meet(pprank, name):
            Path(name).touch()
            while not all(pprank.gather(Path("a").exists() and Path("b").exists())):
                pass
        """
    )
    run = runner.run("-n2", "--pp-size=2", "--pprank-device=cpu", env=env, preexec_fn=one_core)
    assert run.ret == 0, run.out
    assert run.counts() == {"passed": 2}
    assert "waiting" not in run.out


def test_xdist_workers_that_want_more_than_there_is(
    runner: Runner, env: dict[str, str], folder: LockFolder
) -> None:
    pytest.importorskip("xdist")
    runner.write(
        test_it="""
        from pathlib import Path
        import pytest
        @pytest.mark.parametrize("number", range(8))
        def test_it(pprank, number):
            seen = Path("seen").exists()
            while not seen:
                seen = all(pprank.gather(any(Path("pytest-pprank-leases").glob("wait-*"))))
            Path("seen").touch()
        """
    )
    run = runner.run("-n2", "--pp-size=3", "--pprank-device=cpu", env=env, preexec_fn=one_core)
    assert run.ret == 0, run.out
    assert run.counts() == {"passed": 8}
    assert not folder.path.exists()


def test_interrupted_while_waiting(
    runner: Runner, env: dict[str, str], other_run: OtherRun, folder: LockFolder
) -> None:
    runner.write(test_it=PASSES)
    with (
        other_run(cpu_slots()),
        runner.popen("-v", "--pp-size=2", *FLAGS, env=env) as process,
    ):
        try:
            runner.read_until(process, "pprank: waiting for 2 of ")
            assert folder.names("wait-")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert folder.names() == sorted(cpu_slots())


def test_killed_while_it_holds(
    runner: Runner, env: dict[str, str], folder: LockFolder, tmp_path: Path
) -> None:
    runner.write(
        test_it="""
        from pathlib import Path
        def test_it(pprank):
            Path("inside").touch()
            while True:
                pprank.barrier()
        """
    )
    with runner.popen("--pp-size=2", "--pprank-device=cpu", env=env) as process:
        try:
            runner.wait_for((tmp_path / "inside").exists, "a rank is inside")
            assert len(folder.names()) == 2
        finally:
            process.kill()
    runner.wait_for(lambda: not runner.processes(), "all processes are gone")
    assert not folder.path.exists()
