"""The one way in which attributes of other people's objects are replaced, and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def patch(owner: Any, name: str, value: object) -> Callable[[], bool]:
    """Set ``owner.name``; returns what puts back the owner's own attribute, or takes it away again
    where it was inherited.

    That does nothing, and returns False, where somebody has put something else there meanwhile: it
    wraps ours, and will be put back by them. It may be called again.
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
