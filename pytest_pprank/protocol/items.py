"""The key of a test, which is the same on the controller and on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_pprank.protocol.messages import ItemKey


def item_key(item: pytest.Item) -> ItemKey:
    """Return the file and the names below it. (Node ids depend on rootdir and arguments.)"""
    names: list[str] = []
    for node in item.listchain():
        if isinstance(node, pytest.File):
            names.clear()  # packages and folders above the file are part of its path
        else:
            names.append(node.name)
    return (str(item.path), *names)


def test_name(key: ItemKey) -> str:
    """Return a test's name, the same in any checkout: its file without folders, and the names."""
    file, *names = key
    return "::".join([Path(file).name, *names])


test_name.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it
