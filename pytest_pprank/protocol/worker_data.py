"""Serialises the `workerinput` and `workeroutput` that plugins of controller and ranks exchange.

The names are those of pytest-xdist. As with xdist, only plain Python types can be sent, so that
reading them imports nothing.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping
from typing import Any


def pack(data: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return `data` as bytes, and a map from the names that cannot be sent to the reason."""
    plain: dict[str, object] = {}
    left: dict[str, str] = {}
    for name, value in data.items():
        try:
            marshal.dumps(value)
            plain[name] = value
        except ValueError:
            left[name] = f"{type(value).__name__}, or something in it, is no plain Python type"
    return marshal.dumps(plain), left


def unpack(packed: bytes) -> dict[str, Any]:
    """Return the data that `pack` has serialised; an empty dict for no bytes."""
    data: dict[str, Any] = marshal.loads(packed) if packed else {}
    return data
