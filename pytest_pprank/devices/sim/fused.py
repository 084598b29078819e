"""Fused kernels: several operators that run on the device as one, like a GPU's own kernels.

On a GPU a normalisation, a rotation or an attention is one kernel. Here such a kernel is a function
of torch operators that runs on the CPU aliases of its arguments. Its values are those of the
function on the CPU; its accesses count as one piece of work. The function must modify only
arguments that are declared as written, and its results must not share memory with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pytest_pprank.devices.sim import tracker
from pytest_pprank.devices.sim.accesses import Rows, Work
from pytest_pprank.devices.sim.kernels import Operand, refuse_host_tensors, viewed
from pytest_pprank.devices.sim.memory import Block, operand, sim_tensor
from pytest_pprank.devices.sim.settings import settings
from pytest_pprank.devices.sim.streams import current_stream, host, lock

_Tensor = torch.Tensor


class Launch:
    """One run of a fused kernel: maps its arguments to CPU, and its results back to the device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._operands: list[Operand] = []
        self._foreign: list[tuple[str, torch.Tensor]] = []
        self._work: Work | None = None

    def reads(
        self, value: Any, name: str = "input", rows: Rows | None = None, write: bool = False
    ) -> Any:
        """Declare an argument that is read; return it for the function (device -> CPU tensor)."""
        if not isinstance(value, _Tensor):
            return value
        if value.is_cpu:
            self._foreign.append((name, value))
            return value
        block, alias = self._take(value, name, write)
        with lock:
            tracker.touch(block, value, write, self._begun(block), rows)
        return alias

    def writes(self, value: Any, name: str = "out") -> Any:
        """Declare an argument that is written; return it for the function."""
        return self.reads(value, name, None, True)

    def reads_bytes(self, tensor: torch.Tensor, name: str, ranges: list[tuple[int, int]]) -> Any:
        """Declare a device tensor of whose storage only these byte ranges are read."""
        if tensor.is_cpu:
            self._foreign.append((name, tensor))
            return tensor
        block, alias = self._take(tensor, name, write=False)
        with lock:
            work = self._begun(block)
            for lo, hi in ranges:
                tracker.touch_bytes(block, lo, hi, False, work, None, tensor)
        return alias

    def waits(self) -> None:
        """Make the host wait for the stream, because it needs values of the arguments."""
        if self._work is not None:
            host.sees(self._work.stream.clock)

    def _take(self, tensor: Any, name: str, write: bool) -> tuple[Block, Any]:
        block, alias = operand(tensor)
        self._operands.append(Operand(tensor, block, alias, name, write))
        return block, alias

    def _begun(self, block: Block) -> Work:
        if self._work is None:
            self._work = tracker.begin(self.name, current_stream(block.device))
        return self._work

    def results(self, result: Any) -> Any:
        """Return the function's result with its tensors on the device."""
        if self._work is None:
            return result
        return self._results(result, self._work, set())

    def _results(self, result: Any, work: Work, storages: set[int]) -> Any:
        if isinstance(result, (list, tuple)):
            return type(result)(self._results(one, work, storages) for one in result)
        if not isinstance(result, _Tensor):
            return result
        storage = result.untyped_storage()
        for one in self._operands:
            if one.alias is result:
                return one.tensor
            if one.alias.untyped_storage()._cdata == storage._cdata:
                return viewed(result, self._operands)
        if storage._cdata in storages or storage.nbytes() != result.nbytes:
            result = result.clone()
        storages.add(result.untyped_storage()._cdata)
        tensor = sim_tensor(result, work.stream.device_index)
        with lock:
            if settings.tracking:
                tracker.made(tensor, work)
        return tensor

    def check(self) -> None:
        """Refuse host tensors among the arguments, except numbers."""
        if self._operands:
            refuse_host_tensors(self.name, self._operands[0].tensor, self._foreign)


def fused(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a function that modifies none of its tensors into one kernel of the device."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        launch = Launch(name)
        given = [launch.reads(value) for value in args]
        named = {key: launch.reads(value, key) for key, value in kwargs.items()}
        launch.check()
        return launch.results(function(*given, **named))

    return kernel
