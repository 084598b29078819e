"""Replaces and restores attributes of other packages' objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def patch(owner: Any, name: str, value: object) -> Callable[[], bool]:
    """Set ``owner.name`` and return a function that undoes it, also if the attribute was inherited.

    If the attribute has another value by then, the function does nothing and returns False: a later
    patch wraps ours and will restore it. The function may be called again.
    """
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, value)

    def undo() -> bool:
        if vars(owner).get(name) is not value:
            return False
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
        return True

    return undo
