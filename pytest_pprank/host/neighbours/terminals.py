"""Plugins that print what the controller prints: they are unregistered on a rank.

pytest-github-actions-annotate-failures prints nothing on workers of pytest-xdist, but only if xdist
is loaded.
"""

from __future__ import annotations

import pytest

_PRINT = ("annotate_errors", "annotate_warnings")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Unregister the plugins that have been registered by now."""
    config = session.config
    for name in _PRINT:
        if config.pluginmanager.hasplugin(name):
            config.pluginmanager.unregister(name=name)
