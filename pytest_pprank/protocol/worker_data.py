"""What plugins of controller and ranks say to each other: the `workerinput` and `workeroutput` that
pytest-xdist has for its workers.

Nothing but Python's own plain types crosses, as with xdist: to read it imports nothing.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping
from typing import Any


def pack(data: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return `data` as bytes, and the names of what cannot cross, with the reason."""
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
    """Return what `pack` has packed; nothing of no bytes."""
    data: dict[str, Any] = marshal.loads(packed) if packed else {}
    return data
