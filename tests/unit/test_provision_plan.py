"""What setup decides from facts about the machine; no network, nothing installed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.provision import plan
from pytest_pprank.provision.facts import TORCH_CPU_INDEX, Facts
from pytest_pprank.provision.lock import (
    OTHER_TORCH,
    TORCH_NEEDS,
    check_version,
    default_version,
    locked_versions,
    name_of,
    pins,
    requirement_lines,
    requires_python,
)
from pytest_pprank.provision.plan import Install, TorchFrom, Wanted

CPU_TORCH = f"torch=={pins(release='0.5.23')['torch']}+cpu"
OTHER_BUILD = f"torch=={OTHER_TORCH}+cpu"


def machine(
    *, torch: str | None = None, gpu: bool = False, installed: dict[str, str] | None = None
) -> Facts:
    have = dict(installed or {})
    if torch is not None:
        have["torch"] = torch
    return Facts(sglang=None, torch=torch, gpu=gpu, installed=have)


def never(*_: object) -> bool:
    pytest.fail("asked without need")


@pytest.mark.parametrize(
    ("facts", "asked", "expected"),
    [
        (machine(), set(), Wanted.CPU),
        (machine(gpu=True), set(), Wanted.CUDA),
        (machine(gpu=True), {"cpu"}, Wanted.CPU),
        (machine(), {"cuda"}, Wanted.CUDA),
        (machine(gpu=True, torch="2.13.0+cpu"), set(), Wanted.CPU),
        (machine(gpu=True, torch="2.13.0"), set(), Wanted.CUDA),
        (machine(gpu=True), {"torch_only"}, Wanted.TORCH),
    ],
)
def test_the_set_fits_the_machine_unless_told(
    facts: Facts, asked: set[str], expected: Wanted
) -> None:
    options = {name: name in asked for name in ("cpu", "cuda", "torch_only")}
    assert plan.wanted(facts, **options) is expected


@pytest.mark.parametrize(
    ("torch", "offers", "answers", "expected"),
    [
        ("2.12.0", never, never, [TorchFrom.HERE]),
        (None, lambda _: True, never, [TorchFrom.CONFIGURED]),
        (None, lambda _: False, lambda: True, [TorchFrom.CPU_INDEX, TorchFrom.REGISTRY]),
        (None, lambda _: False, lambda: False, [TorchFrom.REGISTRY]),
        (None, lambda it: it == OTHER_BUILD, lambda: False, [TorchFrom.OTHER]),
        (None, lambda it: it == OTHER_BUILD, lambda: True, [TorchFrom.CPU_INDEX, TorchFrom.OTHER]),
    ],
)
def test_torch_comes_from_the_nearest_source(
    torch: str | None,
    offers: Callable[[str], bool],
    answers: Callable[[], bool],
    expected: list[TorchFrom],
) -> None:
    assert list(plan.torch_sources(machine(torch=torch), offers, answers, "0.5.23")) == expected


def test_pip_is_asked_for_the_cpu_build_of_the_locked_torch() -> None:
    sources = plan.torch_sources(machine(), lambda text: text == CPU_TORCH, never, "0.5.23")
    assert list(sources) == [TorchFrom.CONFIGURED]


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (TorchFrom.CONFIGURED, ["--no-deps", "-r", "LOCK", CPU_TORCH]),
        (
            TorchFrom.CPU_INDEX,
            ["--no-deps", "--extra-index-url", TORCH_CPU_INDEX, "-r", "LOCK", CPU_TORCH],
        ),
        (TorchFrom.OTHER, ["--no-deps", "-r", "LOCK", OTHER_BUILD]),
        (TorchFrom.REGISTRY, ["--no-deps", "-r", "LOCK"]),
        (TorchFrom.HERE, ["--no-deps", "-r", "LOCK"]),
    ],
)
def test_the_cpu_set_is_one_pip_call_without_dependencies(
    source: TorchFrom, arguments: list[str]
) -> None:
    torch = "2.12.0" if source is TorchFrom.HERE else None
    install = plan.cpu_install(Wanted.CPU, machine(torch=torch), source, "0.5.23")
    assert install.arguments("LOCK") == ["install", "--no-compile", *arguments]


def test_an_installed_torch_and_what_is_built_against_it_stay() -> None:
    facts = machine(torch="2.12.0", installed={"torchvision": "0.27.0", "numpy": "1.0"})
    install = plan.cpu_install(Wanted.CPU, facts, TorchFrom.HERE)
    left = {name_of(line) for line in requirement_lines(install.leave_out)}
    assert not left & {"torch", "torchvision"}
    assert {"triton", "numpy", "sglang"} <= left


def test_torch_only_takes_torch_and_its_needs_from_the_lock() -> None:
    install = plan.cpu_install(Wanted.TORCH, machine(), TorchFrom.CONFIGURED, "0.5.23")
    names = [name_of(line) for line in install.requirements]
    assert sorted(names) == sorted(TORCH_NEEDS)
    assert CPU_TORCH in install.requirements
    assert not install.lock


@pytest.mark.parametrize("torch", [None, "2.13.0+cu130"])
def test_the_full_set_pins_an_installed_torch(torch: str | None) -> None:
    install = plan.full_install(Wanted.CUDA, machine(torch=torch, gpu=True))
    kept = [] if torch is None else [f"torch=={torch}"]
    assert install.requirements == (f"sglang=={pins()['sglang']}", *kept)
    assert "--no-deps" not in install.arguments("")


@pytest.mark.parametrize("torch", ["2.10.0", "2.9.1+cpu", "2.11.0rc1"])
def test_a_torch_that_is_too_old_is_an_error_and_stays(torch: str) -> None:
    with pytest.raises(UsageError, match=r"torch 2\.\d+.* never replaces .* 2\.11 or newer"):
        plan.check_torch(machine(torch=torch))


@pytest.mark.parametrize("torch", [None, "2.11.0", "2.13.0+cpu", "2.15.0.dev1"])
def test_a_torch_that_is_new_enough_is_taken(torch: str | None) -> None:
    plan.check_torch(machine(torch=torch))


def test_packages_that_give_way_are_named() -> None:
    numpy = pins()["numpy"]
    facts = machine(torch="2.12.0", installed={"numpy": "1.0", "tqdm": pins()["tqdm"]})
    install = plan.cpu_install(Wanted.CPU, facts, TorchFrom.HERE)
    assert plan.replaced(install, facts) == [f"numpy 1.0 -> {numpy}"]


def test_the_shown_command_leaves_out_what_the_real_one_does() -> None:
    shown = str(Install(lock="0.5.21", leave_out=frozenset({"torch"})))
    echoed = shown.replace("python -m pip install --no-compile -r", "cat")
    lines = subprocess.run(["bash", "-c", echoed], capture_output=True, text=True, check=True)
    kept = [line for line in lines.stdout.splitlines() if not line.startswith("#")]
    assert kept == requirement_lines(frozenset({"torch"}), "0.5.21")


def test_another_torch_takes_the_place_of_the_one_in_the_lock() -> None:
    install = plan.cpu_install(Wanted.CPU, machine(), TorchFrom.OTHER, "0.5.23")
    left = requirement_lines(install.leave_out, install.lock)
    assert [line for line in left if name_of(line) == "torch"] == []
    only_torch = plan.cpu_install(Wanted.TORCH, machine(), TorchFrom.OTHER, "0.5.23")
    assert [it for it in only_torch.requirements if name_of(it) == "torch"] == [OTHER_BUILD]


@pytest.mark.parametrize("version", locked_versions())
def test_a_lock_pins_what_sglang_needs_and_nothing_of_cuda(version: str) -> None:
    lines = requirement_lines(release=version)
    assert all("==" in line for line in lines)
    found = pins(release=version)
    assert found["sglang"] == version
    assert {"torch", "torchvision", "transformers", "xgrammar"} <= set(found)
    assert set(found) >= TORCH_NEEDS
    assert not [name for name in found if name.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize(
    ("python", "version"), [("3.10.13", "0.5.21"), ("3.11.7", locked_versions()[-1])]
)
def test_the_default_is_the_newest_release_for_the_python(python: str, version: str) -> None:
    assert default_version(python) == version
    assert requires_python(version)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.5.9", r"--sglang 0\.5\.9: no lock .*there are 0\.5\.13, .*0\.5\.23"),
        ("newest", r"no lock for that release"),
    ],
)
def test_a_release_without_a_lock_is_a_usage_error(version: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_version(version)


def test_a_release_that_needs_a_newer_python_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.10.13")
    with pytest.raises(
        UsageError, match=r"0\.5\.23: needs Python >=3\.11, this is 3\.10.*0\.5\.21"
    ):
        check_version("0.5.23")
