"""What depends on the release of the installed SGLang."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pprank.sglang.static import release
from pytest_pprank.sglang.static.installed import Installed


@pytest.mark.parametrize(
    ("installed", "older"),
    [
        ("0.5.9", True),
        ("0.5.21rc1", True),
        ("0.5.21", False),
        ("0.5.21.post1", False),
        (None, False),
    ],
)
def test_is_older_than(monkeypatch: pytest.MonkeyPatch, installed: str | None, older: bool) -> None:
    here = None if installed is None else Installed(installed, Path("/sglang"))
    monkeypatch.setattr(release, "installed", lambda: here)
    assert release.is_older_than("0.5.21") is older
