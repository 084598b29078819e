"""Which SGLang is found: a wheel, a checkout on the path, an editable install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_pprank.errors import UsageError
from pytest_pprank.sglang.static import release
from pytest_pprank.sglang.static.installed import UNKNOWN, installed


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder that comes first on the path, and forget an imported SGLang."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sglang", raising=False)
    return tmp_path


def package(folder: Path, version: str = "") -> Path:
    root = folder / "sglang"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("")
    if version:
        (root / "_version.py").write_text(f"__version__ = version = {version!r}\n")
    return root


def metadata_of(folder: Path, version: str, url: str = "") -> None:
    info = folder / f"sglang-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    if url:
        text = f'{{"url": "{url}", "dir_info": {{"editable": true}}}}'
        (info / "direct_url.json").write_text(text)


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_the_package_says_its_version(path: Path) -> None:
    root = package(path, "0.5.23")
    here = installed()
    assert here is not None
    assert (here.version, here.root) == ("0.5.23", root)
    assert str(here) == f"0.5.23 ({root})"


def test_a_checkout_goes_before_the_metadata_of_a_wheel(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path_factory.mktemp("site")
    package(site)
    metadata_of(site, "0.5.13")
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(path)
    package(path, "0.5.22")
    assert release.sglang_version() == "0.5.22"


def test_metadata_of_other_code_is_not_believed(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path_factory.mktemp("site")
    metadata_of(site, "0.5.13")
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(path)
    package(path)
    assert release.sglang_version() == UNKNOWN
    assert not release.is_older_than("99")


def test_an_editable_install_has_the_version_of_its_metadata(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path_factory.mktemp("checkout")
    package(checkout / "python")
    monkeypatch.syspath_prepend(checkout / "python")
    metadata_of(path, "0.5.21", f"file://{checkout}/python")
    assert release.sglang_version() == "0.5.21"


@pytest.mark.parametrize(("commits", "version"), [(0, "0.5.23"), (2, "0.5.24.dev2+g")])
def test_a_checkout_counts_from_its_tag(path: Path, commits: int, version: str) -> None:
    git(path, "init", "-q")
    package(path)
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    git(path, "tag", "v0.5.23")
    for _ in range(commits):
        git(path, "commit", "-qm", "more", "--allow-empty")
    here = installed()
    assert here is not None
    assert here.version.startswith(version)
    assert here.commit
    assert f", commit {here.commit})" in str(here)
    assert not here.is_older_than("0.5.23")


def test_none_where_there_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(path)])
    (path / "sglang").mkdir()  # such as the root of a checkout
    assert installed() is None
    with pytest.raises(UsageError, match="sglang is not installed"):
        release.check_installed()


def test_one_that_is_too_old_is_refused_and_one_of_unknown_version_is_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "check_torch", lambda: None)
    root = package(path)
    release.check_installed()
    (root / "_version.py").write_text("__version__ = version = '0.5.12'\n")
    sys.modules[installed.__module__].inspect_package.cache_clear()
    with pytest.raises(UsageError, match=r"sglang 0\.5\.12 is too old"):
        release.check_installed()
