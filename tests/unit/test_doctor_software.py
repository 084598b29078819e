"""What ``doctor`` says of Python, pytest, torch, SGLang, the devices, Mooncake and a start."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from pytest_pprank.bench.seams import Row
from pytest_pprank.devices import Gpu, device_environment
from pytest_pprank.doctor import devices, software, start
from pytest_pprank.doctor.child import ChildFailed
from pytest_pprank.doctor.result import EVERYTHING, WITH_SGLANG, Result, State, Use
from pytest_pprank.doctor.table import CHECKS
from pytest_pprank.errors import SEE_DOCTOR, GroupError, UsageError
from pytest_pprank.protocol.launcher import preload_entries
from pytest_pprank.protocol.messages import Preloaded
from pytest_pprank.provision import lock
from pytest_pprank.sglang.platform import mooncake
from pytest_pprank.sglang.static import release
from pytest_pprank.sglang.static.installed import Installed

ROOT = Path(__file__).parents[2]
SETUP = "python -m pytest_pprank setup"
Patch = pytest.MonkeyPatch


def answers(text: str) -> Callable[..., str]:
    return lambda *_: text


def fails(text: str) -> Callable[..., str]:
    def ask(*_: str) -> str:
        raise ChildFailed(text)

    return ask


def versions(patch: Patch, **known: str) -> None:
    """Let importlib.metadata know no other package than these."""

    def version(name: str) -> str:
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    patch.setattr(metadata, "version", version)


def sglang_is(patch: Patch, here: Installed | None) -> None:
    for module in (release, software, devices):
        patch.setattr(module, "installed", lambda: here)


def stops_of(name: str) -> tuple[Use, ...]:
    (check,) = (it for it in CHECKS if it.name == name)
    return check.stops


class TestPython:
    def test_what_is_supported_is_what_the_project_declares(self) -> None:
        text = (ROOT / "pyproject.toml").read_text()
        declared = re.findall(r'Python :: (3)\.(\d+)"', text)
        minors = sorted(int(minor) for _, minor in declared)
        assert ((3, minors[0]), (3, minors[-1])) == software.PYTHONS
        assert f'"pytest>={software.PYTESTS[0]}"' in text

    def test_a_newer_one_is_limited(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(sys, "version_info", (3, 99, 0))
        assert software.python().state is State.LIMITED

    def test_another_system_is_broken(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        result = software.python()
        assert result.state is State.BROKEN
        assert result.text.endswith("pytest-pprank needs Linux")
        assert stops_of("python") == EVERYTHING


@pytest.mark.parametrize(
    ("version", "state", "cure"),
    [
        ("7.4.4", State.BROKEN, f"{sys.executable} -m pip install 'pytest>=8'"),
        ("8.0.0", State.OK, ""),
        ("9.1.0", State.OK, ""),
        ("10.0.0", State.LIMITED, ""),
    ],
)
def test_pytest(version: str, state: State, cure: str, monkeypatch: Patch) -> None:
    versions(monkeypatch, pytest=version)
    result = software.pytest_itself()
    assert (result.state, result.cure) == (state, cure)


class TestTorch:
    def test_missing(self, monkeypatch: Patch) -> None:
        versions(monkeypatch)
        monkeypatch.setattr(software, "find_spec", lambda _: None)
        result = software.torch()
        text = "torch is not installed; pytest-pprank needs torch 2.11 or newer"
        assert result == Result(State.BROKEN, text, f"{SETUP} --torch-only")
        assert stops_of("torch") == EVERYTHING

    def test_too_old(self, monkeypatch: Patch) -> None:
        versions(monkeypatch, torch="2.10.0")
        monkeypatch.setattr(software, "find_spec", lambda _: "a spec")
        result = software.torch()
        assert result.text.startswith("torch 2.10.0 is too old")
        assert result.cure == f"{SETUP} --torch-only  # in a fresh environment"

    @pytest.mark.parametrize(
        ("said", "text"),
        [
            ("||True", "2.13.0, CPU build"),
            ("12.8||True", "2.13.0, CUDA 12.8 build"),
            ("|6.4|True", "2.13.0, ROCm 6.4 build"),
        ],
    )
    def test_build(self, said: str, text: str, monkeypatch: Patch) -> None:
        versions(monkeypatch, torch="2.13.0")
        monkeypatch.setattr(software, "ask", answers(said))
        assert software.torch() == Result(State.OK, text)

    def test_without_gloo(self, monkeypatch: Patch) -> None:
        versions(monkeypatch, torch="2.13.0")
        monkeypatch.setattr(software, "ask", answers("||False"))
        assert software.torch().state is State.BROKEN

    def test_one_that_does_not_import(self, monkeypatch: Patch) -> None:
        versions(monkeypatch, torch="2.13.0")
        monkeypatch.setattr(software, "ask", fails("ImportError: libgomp.so.1"))
        result = software.torch()
        assert result.state is State.BROKEN
        assert result.text == "2.13.0 does not import: ImportError: libgomp.so.1"


class TestSGLang:
    def test_absent(self, monkeypatch: Patch) -> None:
        sglang_is(monkeypatch, None)
        monkeypatch.setattr(software, "find_spec", lambda _: None)
        text = "sglang is not installed; pytest-pprank needs sglang 0.5.13 or newer"
        assert software.sglang() == Result(State.LIMITED, text, SETUP, WITH_SGLANG)
        assert software.seams() == Result(State.LIMITED, "not looked for: there is no SGLang")
        text = "not looked for: there is no SGLang"
        assert devices.mooncake() == Result(State.LIMITED, text, stops=(Use.DISAGG,))

    def test_one_with_a_lock(self, monkeypatch: Patch, tmp_path: Path) -> None:
        newest = lock.locked_versions()[-1]
        sglang_is(monkeypatch, Installed(newest, tmp_path))
        monkeypatch.setattr(lock, "pins", lambda **_: {"torch": "2.13.0", "numpy": "2.0"})
        versions(monkeypatch, torch="2.13.0+cpu", numpy="2.0")
        result = software.sglang()
        assert result == Result(State.OK, f"{newest} ({tmp_path}); lock {newest}, with its 2 pins")
        versions(monkeypatch, torch="2.14.0")
        result = software.sglang()
        differ = "torch 2.14.0 (lock: 2.13.0), numpy missing (lock: 2.0)"
        assert result.text.endswith(f"2 of 2 pins differ: {differ}")

    def test_one_without_a_lock(self, monkeypatch: Patch, tmp_path: Path) -> None:
        sglang_is(monkeypatch, Installed("9.9", tmp_path))
        result = software.sglang()
        assert (result.state, result.stops) == (State.LIMITED, ())
        assert "no lock has this version: they are 0.5.13 to" in result.text

    def test_seams_that_are_missing(self, monkeypatch: Patch, tmp_path: Path) -> None:
        there = Row("forward", "event", "", (), "one shape", (), (), ("sanitizer kv",))
        gone = Row("plan", "event", "", (), "", (), ("Scheduler.plan",), ("sanitizer liveness",))
        sglang_is(monkeypatch, Installed("9.9", tmp_path))
        monkeypatch.setattr(software, "inspect_all", lambda _: iter([there, gone]))
        result = software.seams()
        assert result.state is State.LIMITED
        assert result.text == "1 of 2 missing: plan; off: sanitizer liveness"
        assert result.cure.startswith(f"{SETUP} --sglang 0.5.")
        monkeypatch.setattr(software, "inspect_all", lambda _: iter([there]))
        assert software.seams().state is State.OK


class TestDevices:
    def test_sim_that_cannot_be_installed(self, monkeypatch: Patch) -> None:
        monkeypatch.setattr(devices, "ask", fails("torch has moved it"))
        result = devices.sim()
        assert (result.state, result.stops) == (State.LIMITED, (Use.SIM,))
        assert result.text.endswith("torch has moved it")

    def test_no_gpu(self, monkeypatch: Patch) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(devices, "visible_gpus", lambda *_: ())
        text = "no NVIDIA GPU is visible"
        assert devices.cuda() == Result(State.LIMITED, text, stops=(Use.CUDA,))

    def test_hidden_gpus(self, monkeypatch: Patch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        gpus = (Gpu("a", "0"), Gpu("b", "1"))
        monkeypatch.setattr(devices, "visible_gpus", lambda *given: gpus if given else ())
        assert devices.cuda().cure == "unset CUDA_VISIBLE_DEVICES"

    def test_gpus(self, monkeypatch: Patch, tmp_path: Path) -> None:
        driver = tmp_path / "version"
        driver.write_text(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\nGCC 12\n"
        )
        gpus = [Gpu("a", "0"), Gpu("b", "1")]
        monkeypatch.setattr(devices, "_DRIVER", driver)
        monkeypatch.setattr(devices, "visible_gpus", lambda *_: tuple(gpus))
        monkeypatch.setattr(devices, "ask", answers("cuda:0|NVIDIA H100"))
        assert devices.cuda() == Result(State.OK, "2 GPUs, driver 550.54.15 (NVIDIA H100)")
        del gpus[0]
        assert devices.cuda().stops == (Use.CUDA,)
        monkeypatch.setattr(devices, "ask", fails("this torch is not a CUDA build"))
        result = devices.cuda()
        assert result.text.endswith("torch cannot use one: this torch is not a CUDA build")
        assert result.cure.startswith(f"{SETUP} --cuda")

    def test_mooncake_lacks_a_library(self, monkeypatch: Patch, tmp_path: Path) -> None:
        lacks = "ImportError: libibverbs.so.1: cannot open shared object file"
        sglang_is(monkeypatch, Installed("9.9", tmp_path))
        monkeypatch.setattr(mooncake, "installed", lambda: True)
        monkeypatch.setattr(mooncake, "why_not", lambda: lacks)
        monkeypatch.setattr(mooncake, "missing_libraries", lambda _: ("libibverbs.so.1",))
        result = devices.mooncake()
        assert (result.state, result.stops) == (State.LIMITED, (Use.DISAGG,))
        assert result.text == "lacks libibverbs.so.1"
        assert result.cure == "apt-get update && apt-get install -y libibverbs1  # as root"
        monkeypatch.setattr(mooncake, "installed", lambda: False)
        assert devices.mooncake().cure.endswith(f"pip install --no-deps {mooncake.PACKAGE}")


DEVICE = "cpu"
TORCH, *_ = preload_entries(DEVICE, sglang=False)
SGLANG = preload_entries(DEVICE, sglang=True)[0]


class Client:
    """A launcher that has finished its imports, or cannot."""

    found: Preloaded | GroupError
    closed = 0

    def __init__(self, preload: tuple[str, ...], *, environment: dict[str, str]) -> None:
        assert preload == preload_entries(DEVICE, sglang=True)
        assert environment == device_environment("cpu")

    def wait_preloaded(self, seconds: float) -> Preloaded:
        assert seconds < start.SECONDS
        if isinstance(self.found, GroupError):
            raise self.found
        return self.found

    def close(self) -> None:
        type(self).closed += 1


class TestStart:
    @pytest.fixture(autouse=True)
    def _launcher(self, monkeypatch: Patch) -> Iterator[None]:
        monkeypatch.setattr(start, "check_torch", lambda: None)
        monkeypatch.setattr(start, "check_sglang", lambda: None)
        monkeypatch.setattr(start, "choose_device", lambda *_, **__: DEVICE)
        monkeypatch.setattr(start, "LauncherClient", Client)
        Client.closed = 0
        yield
        assert Client.closed <= 1

    def found(self, reason: str = "", **failures: str) -> Result:
        names = {"torch": TORCH, "sglang": SGLANG}
        told = {names[name]: f"Traceback ...\n  File x\n{why}\n" for name, why in failures.items()}
        method = "spawn" if reason else "forkserver"
        Client.found = Preloaded(9.12, (), told, ("python",), "", method, reason)
        result = start.start()
        assert Client.closed == 1
        return result

    def test_forked(self) -> None:
        text = "groups are forked, with torch and SGLang for device cpu imported once, in 9.1 s"
        assert self.found() == Result(State.OK, text)

    def test_spawned(self) -> None:
        result = self.found("imports left 1 thread(s) behind")
        assert (result.state, result.stops) == (State.LIMITED, ())
        assert result.text.endswith("imports left 1 thread(s) behind")

    def test_sglang_does_not_import(self) -> None:
        result = self.found(sglang="ImportError: no libcuda")
        assert (result.state, result.stops) == (State.LIMITED, WITH_SGLANG)
        assert result.text == "ranks cannot import SGLang for device cpu: ImportError: no libcuda"

    def test_torch_does_not_import(self) -> None:
        result = self.found(sglang="ImportError: a", torch="ImportError: b")
        assert result == Result(State.BROKEN, f"ranks cannot import {TORCH}: ImportError: b")
        assert stops_of("start") == EVERYTHING

    def test_no_launcher(self) -> None:
        words = "the launcher process did not come up:\nTraceback\nMemoryError: x"
        Client.found = GroupError(f"{words}\n{SEE_DOCTOR}")
        text = "the launcher process did not come up: MemoryError: x"
        assert start.start() == Result(State.BROKEN, text)
        assert Client.closed == 1

    def test_without_torch_it_is_not_tried(self, monkeypatch: Patch) -> None:
        def absent() -> None:
            raise UsageError("no torch")

        monkeypatch.setattr(start, "check_torch", absent)
        assert start.start() == Result(State.BROKEN, "not tried: there is no torch")


def test_messages_lead_here(monkeypatch: Patch) -> None:
    versions(monkeypatch)
    with pytest.raises(UsageError) as error:
        release.check_torch()
    assert str(error.value).endswith(SEE_DOCTOR)
