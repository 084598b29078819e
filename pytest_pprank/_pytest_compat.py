"""What we need of pytest that it does not promise, in one place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def basetemp_of(config: pytest.Config) -> Path | None:
    """Return the folder below which this run's tmp_path folders lie; None without that plugin."""
    factory: pytest.TempPathFactory | None = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else factory.getbasetemp()


def fixtures_from(module: str, node: Any) -> set[str]:
    """Return the fixtures a test uses, however indirectly, that are defined in `module`.

    A name alone says little: a project may have a fixture ``scheduler`` of its own. The last
    definition wins; one before it is used where the last asks for its own name.
    """
    info = getattr(node, "_fixtureinfo", None)
    found = set()
    for name, definitions in ({} if info is None else info.name2fixturedefs).items():
        for definition in reversed(definitions):
            if definition.func.__module__ == module:
                found.add(name)
            if name not in definition.argnames:
                break
    return found


def silence_terminal(config: pytest.Config) -> None:
    """Replace the terminal reporter of a rank by one that no hook reaches, writing to nowhere.

    One must exist: up to pytest 9.0 the explanation of a failed assertion asks it for a writer.
    """
    from _pytest.terminal import TerminalReporter

    manager = config.pluginmanager
    if manager.hasplugin("terminalreporter"):
        manager.unregister(name="terminalreporter")
    reporter = TerminalReporter(config, open(os.devnull, "w"))  # noqa: SIM115
    manager.register(_Unhooked(reporter), "terminalreporter")


class _Unhooked:
    """All attributes of another plugin, but none of its hooks: pluggy looks for these by dir()."""

    def __init__(self, plugin: Any) -> None:
        self._plugin = plugin

    def __getattr__(self, name: str) -> Any:
        if name == "_plugin":
            raise AttributeError(name)  # not yet initialised
        return getattr(self._plugin, name)


def tear_down_for(item: pytest.Item | None, session: pytest.Session) -> None:
    """Tear down what the tests before have set up and `item`, the next one, does not share."""
    session._setupstate.teardown_exact(item)
