"""What all events are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_pprank.oplog.file import Site

T = TypeVar("T")
Look = Callable[[], T]
"""Called to look, and only while the event is being told."""
Stack = tuple[Site, ...]
Layer = tuple[Any, Any]
"""Keys and values of one layer, as numpy arrays [tokens, heads, size]."""


@dataclass(frozen=True)
class Event:
    """Base of all."""
