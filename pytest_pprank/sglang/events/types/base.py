"""Types that all events use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_pprank.oplog.file import Site

T = TypeVar("T")
Look = Callable[[], T]
"""A function that inspects SGLang's objects; call it only inside the listener."""
Stack = tuple[Site, ...]
Layer = tuple[Any, Any]
"""Keys and values of one layer, as numpy arrays [tokens, heads, size]."""


@dataclass(frozen=True)
class Event:
    """Base class of all events."""
