"""What a lock is resolved from: the roots, at the versions that SGLang's metadata requires."""

from __future__ import annotations

import shutil
from email.message import Message
from pathlib import Path

import pytest

from pytest_pprank.provision import resolve
from pytest_pprank.provision.lock import FOLDER, pins, requires_python, version_of

ASKED = (
    "torch==9.1",
    "PartialJson.Parser==1",
    "IPython>=8",
    'xgrammar==0.1; sys_platform == "win32"',
    'openai==1; extra == "test"',
    "flashinfer-python==0.7",
)


def metadata_of(version: str) -> Message:
    metadata = Message()
    metadata["Version"] = version
    metadata["Requires-Python"] = ">=3.11"
    return metadata


def test_a_root_is_taken_at_the_version_sglang_asks_for() -> None:
    lines = resolve.roots(ASKED)
    assert "torch==9.1" in lines
    assert "ipython>=8" in lines
    assert not [line for line in lines if line.startswith(("flashinfer", "openai=="))]


def test_a_requirement_that_does_not_apply_here_pins_nothing() -> None:
    assert "xgrammar" in resolve.roots(ASKED)


def test_a_root_that_sglang_does_not_name_is_taken_as_written() -> None:
    assert "mooncake-transfer-engine-non-cuda==0.3.13.post1" in resolve.roots(ASKED)


def test_without_uv_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    metadata = metadata_of("0.5.23")
    monkeypatch.setattr(resolve, "_metadata", lambda *_: metadata)
    before = {file: file.read_bytes() for file in FOLDER.iterdir()}
    assert resolve.main(["0.5.23"]) == 1
    assert "uv is not on the path: pip install uv" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in FOLDER.iterdir()} == before


def test_the_lock_of_the_newest_release_is_used_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resolve, "_metadata", lambda *_: metadata_of("0.5.23"))
    out = tmp_path / "lock.txt"
    assert resolve.main(["latest", "--output", str(out)]) == 0
    assert out.read_bytes() == (FOLDER / "0.5.23.txt").read_bytes()


def test_a_newer_release_is_resolved_into_the_file_that_was_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resolve, "_metadata", lambda *_: metadata_of("0.5.99"))
    monkeypatch.setattr(resolve, "_compile", lambda *_: "torch==2.99.0\n")
    out = tmp_path / "lock.txt"
    assert resolve.main(["latest", "--output", str(out)]) == 0
    release = str(out)
    assert version_of(release) == "0.5.99"
    assert pins(release=release)["torch"] == "2.99.0"
    assert requires_python(release) == ">=3.11"
    assert not (FOLDER / "0.5.99.txt").exists()
