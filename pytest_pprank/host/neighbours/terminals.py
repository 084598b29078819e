"""Plugins that print what the controller prints: on a rank they have nothing to say.

pytest-github-actions-annotate-failures knows that of a worker of pytest-xdist, but only if xdist is
there.
"""

from __future__ import annotations

import pytest

_PRINT = ("annotate_errors", "annotate_warnings")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let go of what has registered itself meanwhile."""
    config = session.config
    for name in _PRINT:
        if config.pluginmanager.hasplugin(name):
            config.pluginmanager.unregister(name=name)
