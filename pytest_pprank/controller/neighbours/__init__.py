"""The controller's support for other pytest plugins, besides the general one in controller.nodes.

One module per plugin, each with a plugin object, loaded only beside the plugin it supports.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from pytest_pprank.errors import UsageError

_MODULES: dict[str, tuple[str, ...]] = {
    "allure": ("allure_pytest", "allure_pytest.plugin"),
    "pytest_benchmark": ("benchmark", "pytest_benchmark.plugin"),
    "pytest_memray": ("memray", "pytest_memray"),
    "pytest_rich": ("rich-terminal-reporter",),
    "syrupy": ("syrupy",),
}
"""Modules of this package, with the names that their plugins may be registered under."""

_HOOKS_OF_NODES = {
    "pytest_randomly": ("randomly", "XdistHooks"),
    "syrupy": ("syrupy", "DeferXDist"),
}
"""By module: the name it is registered under, and its class of hooks for nodes.

These plugins register the hooks only beside pytest-xdist, and their parts on ranks need them.
"""

_UNSUPPORTED = ("TestmonCollect", "TestmonSelect")
_UNSUPPORTED_TEXT = (
    "--testmon: pytest-testmon does not see what ranks run, so it would leave out ranked tests "
    "whose code has changed; run these without it (with -m 'not pprank', and once more without "
    "--testmon)"
)

_DONE = pytest.StashKey[bool]()


def register(config: pytest.Config) -> None:
    """Register the modules that the plugins of this run need; later calls do nothing."""
    manager = config.pluginmanager
    if config.stash.get(_DONE, False):
        return
    config.stash[_DONE] = True
    if any(map(manager.hasplugin, _UNSUPPORTED)):
        raise UsageError(_UNSUPPORTED_TEXT)
    if not manager.hasplugin("xdist") and not manager.hasplugin("xdist.plugin"):
        for module, (name, hooks) in _HOOKS_OF_NODES.items():
            if manager.hasplugin(name) or manager.hasplugin(module):
                kind: Any = getattr(import_module(module), hooks, None)
                if kind is not None:
                    manager.register(kind(), f"pprank-{module}-nodes")
    for module, names in _MODULES.items():
        if any(map(manager.hasplugin, names)):
            made: Any = import_module(f"{__name__}.{module}")
            manager.register(made.Neighbour(config), f"pprank-{module}")
