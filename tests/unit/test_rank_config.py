"""The command line of a rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pprank.controller.rank_config import rank_arguments


class Item:
    path = Path("/somewhere/test_it.py")


def test_last_word_about_a_plugin_wins(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytestconfig.option, "plugins", ["no:anyio", "no:faulthandler", "anyio"])
    words = rank_arguments(pytestconfig, [Item(), Item()])  # type: ignore[list-item]
    plugins = words[1:-1:2]
    assert plugins[:2] == ("no:faulthandler", "anyio")
    assert "no:anyio" not in plugins
    assert "no:lfplugin" in plugins
    assert words[-1] == "/somewhere/test_it.py"
    assert words.count("/somewhere/test_it.py") == 1
