"""Which shared libraries Mooncake lacks, and who installs them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pytest_pprank.provision import system
from pytest_pprank.sglang.platform import mooncake

LACKS = "ImportError: libibverbs.so.1: cannot open shared object file: No such file or directory"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Simulate a machine whose Mooncake lacks libibverbs; apt-get appends its arguments here."""
    calls: list[str] = []

    def apt(command: list[str]) -> str:
        calls.append(command[1])
        return "" if calls.count("install") > 1 or command[1] == "update" else "Unable to locate"

    monkeypatch.setattr(mooncake, "installed", lambda: True)
    monkeypatch.setattr(mooncake, "missing_libraries", lambda _: ("libibverbs.so.1",))
    monkeypatch.setattr(mooncake, "why_not", lambda: "" if calls.count("install") > 1 else LACKS)
    monkeypatch.setattr(system, "_apt", apt)
    simulated = ("libnl-3-200", "libibverbs1")
    monkeypatch.setattr(system, "_with_dependencies", lambda _: simulated)
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return calls


def agree(command: str) -> bool:
    assert command == "apt-get install libnl-3-200 libibverbs1"
    return True


def test_root_is_asked_and_may_say_no(machine: list[str]) -> None:
    advice = system.complete_mooncake(print, lambda _: False, dry=False)
    assert machine == []
    assert advice.endswith("apt-get install -y libibverbs1 (or, as root: setup --yes)")


def test_packages_are_those_that_apt_would_bring(tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\necho "Inst a1 (1.2 Debian)"; echo "Conf a1"; echo "Inst $3 (2)"\n')
    apt.chmod(0o755)
    assert system._with_dependencies([str(apt), "install", "b2"]) == ("a1", "b2")


def test_root_installs_after_an_update_of_the_lists(machine: list[str]) -> None:
    said: list[str] = []
    assert system.complete_mooncake(said.append, agree, dry=False) == ""
    assert machine == ["install", "update", "install"]
    assert said[0].endswith("needs packages of the system: libnl-3-200 libibverbs1")


def test_others_are_told_the_command(machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    advice = system.complete_mooncake(print, agree, dry=False)
    assert machine == []
    assert advice.endswith("run as root: apt-get update && apt-get install -y libibverbs1")
    assert "\n" not in advice


def test_failure_of_apt_is_told(machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_apt", lambda command: f"no {command[1]}")
    advice = system.complete_mooncake(print, agree, dry=False)
    assert "apt-get install -y libibverbs1 (apt-get said: no update)" in advice
    assert machine == []


def test_dry_run_installs_nothing(machine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert system.complete_mooncake(print, agree, dry=True) == ""
    assert machine == []
    assert "--no-upgrade libibverbs1" in capsys.readouterr().out


def test_mooncake_that_loads_needs_nothing(
    machine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mooncake, "why_not", lambda: "")
    assert system.complete_mooncake(print, agree, dry=False) == ""
    assert machine == []


def test_package_that_is_missing_is_told(
    machine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mooncake, "installed", lambda: False)
    advice = system.complete_mooncake(print, agree, dry=False)
    assert "pip install --no-deps mooncake-transfer-engine-non-cuda" in advice
    assert machine == []


def test_what_is_wrong_otherwise_is_told_as_it_is() -> None:
    assert mooncake.missing_libraries("SystemError: bad ELF") == ()


def test_command_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_APT_S", 0.2)
    assert "nothing for" in system._apt(["sleep", "30"])


def test_command_that_fails_is_told_by_its_last_words() -> None:
    assert system._apt(["sh", "-c", "echo one; echo two; exit 3"]) == "one; two"
