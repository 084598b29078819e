"""pytest-rerunfailures: the controller decides what runs again, on all ranks at once.

The plugin is loaded on ranks nevertheless, so that its ini options and its marker are known.
"""

from __future__ import annotations

import pytest

_NAMES = ("rerunfailures", "pytest_rerunfailures")  # as installed, and as given to -p
_MARKER = "flaky(reruns=1, reruns_delay=0): of pytest-rerunfailures, which acts on the controller"


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Unregister the plugin before it is configured, which may start a server for its counters."""
    _unregister(early_config)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Declare the plugin's marker; unregister the plugin here if it was loaded late."""
    config.addinivalue_line("markers", _MARKER)
    _unregister(config)


def _unregister(config: pytest.Config) -> None:
    for name in _NAMES:
        if config.pluginmanager.hasplugin(name):
            config.pluginmanager.unregister(name=name)
