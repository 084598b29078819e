"""Finds a name for a piece of memory: a field of an object, or a local variable.

Names are not recorded in advance. When a finding is reported, the variables of the running
functions, the objects they refer to, and the objects in those are searched for tensors in that
memory.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import torch

from pytest_pprank.devices.sim import stacks

_FRAMES = 24
_DEPTH = 3
_MOST = 50_000
"""Number of values after which the search is abandoned."""
_LEAVES = (type(None), str, bytes, int, float, type, ModuleType, torch.device, torch.dtype)


def name_of(addresses: Sequence[int]) -> str:
    """Return the name of a tensor whose storage begins at one of `addresses`, tried in order.

    Empty if no such tensor can be found. A field (``ForwardBatch.input_ids``,
    ``PPProxyTensors.tensors['hidden_states']``) is preferred to a local variable, an object near
    the variable to a nested one, an inner stack frame to an outer one.
    """
    found: dict[int, list[tuple[bool, int, int, str]]] = {address: [] for address in addresses}
    search = _Search()
    for far, frame in enumerate(_user_frames()):
        for owned, depth, name, tensor in search.tensors_of(frame):
            address = _address(tensor)
            if address in found:
                found[address].append((not owned, depth, far, name))
    return next((min(names)[3] for names in found.values() if names), "")


def _user_frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    shown = 0
    while frame is not None and shown < _FRAMES:
        if stacks.is_user_code(frame.f_code):
            shown += 1
            yield frame
        frame = frame.f_back


def _address(tensor: torch.Tensor) -> int:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return 0
    try:
        return int(tensor.untyped_storage().data_ptr())
    except RuntimeError:  # a tensor without storage, such as a wrapper's
        return 0


class _Found(NamedTuple):
    """A tensor that was found; `owned`: whether it is in a field of an object."""

    owned: bool
    depth: int
    name: str
    tensor: torch.Tensor


class _Search:
    """Searches objects from variables, breadth first, each object once."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        """The depth at which an object was searched."""
        self._left = _MOST

    def tensors_of(self, frame: FrameType) -> Iterator[_Found]:
        """Yield the tensors reachable from a function's variables."""
        waiting: deque[tuple[Any, str, int, bool]] = deque()
        for name, value in dict(frame.f_locals).items():
            if isinstance(value, torch.Tensor):
                yield _Found(False, 0, f"{name} of {frame.f_code.co_name}", value)
            else:
                waiting.append((value, name, 1, False))
        while waiting and self._left > 0:
            value, name, depth, owned = waiting.popleft()
            # again if it is now nearer: the depth limit may have cut off its contents
            if isinstance(value, _LEAVES) or self._seen.get(id(value), _DEPTH + 1) <= depth:
                continue
            self._seen[id(value)] = depth
            owned |= not isinstance(value, (Mapping, list, tuple))
            for item, called in _parts(value, name):
                self._left -= 1
                if isinstance(item, torch.Tensor):
                    yield _Found(owned, depth, called, item)
                else:
                    waiting.append((item, called, depth + 1, owned))


def _parts(value: Any, name: str) -> Iterator[tuple[Any, str]]:
    if isinstance(value, Mapping):
        if type(value) is dict:
            yield from ((item, f"{name}[{key!r}]") for key, item in list(value.items())[:64])
    elif isinstance(value, (list, tuple)):
        yield from ((item, f"{name}[{number}]") for number, item in enumerate(value[:64]))
    else:
        fields = getattr(value, "__dict__", None)
        if type(fields) is dict:
            owner = type(value).__name__
            yield from ((item, f"{owner}.{field}") for field, item in list(fields.items()))
