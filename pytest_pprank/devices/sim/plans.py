"""How an operator uses its arguments, derived once from its schema."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch

MIXED = frozenset(
    (
        "aten::index.Tensor",
        "aten::index.Tensor_out",
        "aten::index_put_",
        "aten::index_put",
        "aten::_index_put_impl_",
        "aten::_unsafe_index.Tensor",
        "aten::_unsafe_index_put",
        "aten::tensor_split.tensor_indices_or_sections",
        "aten::resize_as_",
    )
)
"""Operators that accept host tensors beside device tensors, as on CUDA."""

_SYNCING = frozenset(
    (
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::equal",
        "aten::nonzero",
        "aten::is_nonzero",
        "aten::masked_select",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::unique_consecutive",
        "aten::allclose",
        "aten::bincount",
        "aten::repeat_interleave.Tensor",
    )
)
"""Operators that make the host wait, for a value or for a size that depends on values."""

_UNSAFE_VIEWS = frozenset(
    (
        "aten::unsafe_split.Tensor",
        "aten::unsafe_split_with_sizes",
        "aten::unsafe_chunk",
        "aten::_unsafe_view",
    )
)
_ROWS = {
    "aten::index_put_": (0, 1),
    "aten::_index_put_impl_": (0, 1),
    "aten::index.Tensor": (0, 1),
    "aten::index_select": (0, 2),
    "aten::index_copy_": (0, 2),
}
"""Operators that access selected rows: (position of the argument, position of the row ids)."""


_OVERWRITES = frozenset(
    (
        "aten::copy_",
        "aten::fill_.Scalar",
        "aten::fill_.Tensor",
        "aten::zero_",
        "aten::index_copy_",
        "aten::index_put_",
        "aten::_index_put_impl_",
    )
)
"""Operators whose result does not depend on the old contents of the bytes that they write."""


class Result(Enum):
    """The kind of a result: new memory, a view of an argument, or a written argument."""

    NEW = 0
    VIEW = 1
    ARGUMENT = 2


class Plan:
    """How to run one operator on aliases of its arguments.

    `tensors`: (position, name, is written) of the positional arguments that are tensors; `written`:
    by name, whether an argument is written, for all tensor arguments. `results`: the kind of each
    result, and the position of the argument that it is, if it is one. `writes_any`: whether any
    argument is written.
    """

    def __init__(self, op: Any) -> None:
        schema = op._schema
        self.op = op
        self.name: str = op.name()
        self.call = op._op
        self.packet = op.overloadpacket
        self.mixed = self.name in MIXED
        self.syncs = self.name in _SYNCING
        self.rows = _ROWS.get(self.name)
        self.overwrites = self.name in _OVERWRITES
        self.names = [argument.name for argument in schema.arguments]
        described = [
            (place, a.name, bool(a.alias_info and a.alias_info.is_write))
            for place, a in enumerate(schema.arguments)
            if "Tensor" in str(a.type)
        ]
        self.tensors = [one for one in described if not schema.arguments[one[0]].kwarg_only]
        self.written = {name: write for _, name, write in described}
        self._accumulate = (
            self.names.index("accumulate") if "accumulate" in self.names else len(self.names)
        )
        self.devices = [
            (place, a.name) for place, a in enumerate(schema.arguments) if "Device" in str(a.type)
        ]
        self.writes_any = any(self.written.values())
        self.results = list(self._results(schema))

    def only_overwrites(self, given: list[Any], kwargs: dict[str, Any]) -> bool:
        """Return whether a call with these arguments ignores the old contents of what it writes."""
        accumulate = given[self._accumulate] if self._accumulate < len(given) else False
        return self.overwrites and not accumulate and not kwargs.get("accumulate")

    def _results(self, schema: Any) -> Iterator[tuple[Result, int]]:
        places = {
            alias: place
            for place, argument in enumerate(schema.arguments)
            for alias in (argument.alias_info.before_set if argument.alias_info else ())
        }
        for returned in schema.returns:
            info = returned.alias_info
            if info is not None and info.is_write:
                named = [places[alias] for alias in info.before_set if alias in places]
                yield (Result.ARGUMENT, named[0]) if named else (Result.NEW, -1)
            elif info is not None or self.name in _UNSAFE_VIEWS:
                yield Result.VIEW, -1
            else:
                yield Result.NEW, -1


def overload(name: str) -> Any:
    """Return the operator ``namespace::name.overload``."""
    namespace, _, rest = name.partition("::")
    base, _, kind = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), base), kind or "default")
