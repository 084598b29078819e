"""What we need of pytest that it does not promise, in one place."""

from __future__ import annotations

from pathlib import Path

import pytest


def basetemp_of(config: pytest.Config) -> Path | None:
    """Return the folder below which this run's tmp_path folders lie; None without that plugin."""
    factory: pytest.TempPathFactory | None = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else factory.getbasetemp()
