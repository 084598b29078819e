"""Serialises what a rank sends to its peers, so that each of them can read it."""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

from pytest_pprank.errors import UsageError


def pickled(value: object, call: str) -> bytes:
    """Pickle `value`, with its tensors on the host: peers cannot access this rank's device memory.

    On devices that can read memory without synchronising, this does not make anything wait. Raises
    UsageError, which names `call`, for a value that cannot be pickled.
    """
    __tracebackhide__ = True
    stream = io.BytesIO()
    try:
        _Pickler(stream).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise UsageError(
            f"{call}: {kind} cannot be sent to the other ranks ({error}); bring numbers, strings, "
            "tensors, or lists, tuples and dicts of them"
        ) from error
    return stream.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: object) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(obj, torch.Tensor) or obj.is_cpu:
            return NotImplemented
        from pytest_pprank.devices.host_reads import host_values

        return host_values(obj.detach()).clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
