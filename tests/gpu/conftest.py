"""Tests on GPUs: skipped where there are fewer than two."""

from __future__ import annotations

import pytest

from pytest_pprank.devices import visible_gpus


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpus = len(visible_gpus())
    if gpus < 2:
        for item in items:
            if item.path.parent.name == "gpu":
                item.add_marker(pytest.mark.skip(f"needs 2 GPUs, {gpus} here"))
