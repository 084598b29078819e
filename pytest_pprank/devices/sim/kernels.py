"""Operators without a kernel of their own: torch's CPU kernel on aliases of their arguments.

The first call of an operator goes through torch's fallback for the device, which is slow. The
fallback registers a kernel for that operator, and later calls go to the kernel directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch

from pytest_pprank.devices.sim import NAME, copies, stacks, tracker, transfers
from pytest_pprank.devices.sim.accesses import Rows, Work, rows_of
from pytest_pprank.devices.sim.memory import Block, operand, sim_tensor
from pytest_pprank.devices.sim.plans import Plan, Result
from pytest_pprank.devices.sim.settings import settings
from pytest_pprank.devices.sim.streams import current_stream, device_index, host, lock
from pytest_pprank.devices.sim.transfers import How

Kernel = Callable[..., Any]
_cpu_keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_cpu = torch.device("cpu")
_Tensor = torch.Tensor
_NUMBERS = (int, float, complex)
_as_strided = torch.ops.aten.as_strided.default
_view_as = torch.ops.aten.view.dtype
_set = torch.ops.aten.set_.source_Storage_storage_offset
_GROWS = frozenset(("out", "out0", "out1", "out2", "values", "indices", "min", "max"))


class Operand(NamedTuple):
    """A device tensor passed to an operator: its block, its CPU alias and its argument's name."""

    tensor: torch.Tensor
    block: Block
    alias: torch.Tensor
    name: str
    write: bool


def on_host(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run torch's CPU code of a view operator on device tensors; it accesses only metadata."""
    return op.redispatch(_cpu_keys, *args, **kwargs)


def make_kernel(plan: Plan) -> Kernel:
    """Return the kernel of one operator."""
    places, simple = plan.tensors, len(plan.results) == 1

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        operands: list[Operand] = []
        foreign: list[tuple[str, torch.Tensor]] = []
        known = len(given)
        call = plan.call
        for place, name, write in places:
            if place >= known:
                break
            value = given[place]
            if isinstance(value, _Tensor):
                if value.is_cpu:
                    foreign.append((name, value))
                else:
                    block, given[place] = operand(value)
                    operands.append(Operand(value, block, given[place], name, write))
            elif isinstance(value, _NUMBERS):
                call = plan.packet  # some operators, not all, need torch to make a tensor of it
            elif value is not None:
                given[place] = _aliases(value, name, write, operands, foreign)
        index = operands[0].block.device if operands else -1
        if kwargs or plan.devices:
            index = _named(plan, given, kwargs, operands, foreign, index)
        if foreign:
            _check_foreign(plan, operands, foreign, index)
        blind = plan.overwrites and plan.only_overwrites(given, kwargs)
        work = _track(plan, operands, 0 if index < 0 else index, blind)
        grown = _growing(operands, given, kwargs) if plan.writes_any else None
        result = call(*given, **kwargs)
        if grown:
            _grow(grown)
        if simple and isinstance(result, _Tensor):
            return _one(plan, 0, result, args, operands, work)
        return _many(plan, result, args, operands, work)

    return kernel


def _aliases(
    value: Any, name: str, write: bool, operands: list[Operand], foreign: list[Any]
) -> Any:
    """Return a list argument with its device tensors replaced by their aliases."""
    if not isinstance(value, (list, tuple)):
        return value
    replaced = []
    for item in value:
        if isinstance(item, _Tensor):
            if item.is_cpu:
                foreign.append((name, item))
            else:
                block, alias = operand(item)
                operands.append(Operand(item, block, alias, name, write))
                replaced.append(alias)
                continue
        replaced.append(item)
    return replaced


def _named(
    plan: Plan,
    given: list[Any],
    kwargs: dict[str, Any],
    operands: list[Operand],
    foreign: list[Any],
    index: int,
) -> int:
    """Replace keyword arguments in place; return the device that the operator runs on."""
    wanted: Any = None
    for name, value in kwargs.items():
        if isinstance(value, _Tensor):
            kwargs[name] = _aliases([value], name, plan.written[name], operands, foreign)[0]
        elif isinstance(value, (list, tuple)) and name in plan.written:
            kwargs[name] = _aliases(value, name, plan.written[name], operands, foreign)
        elif isinstance(value, torch.device):
            wanted, kwargs[name] = value, _cpu
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = None
    for place, _ in plan.devices:
        if place < len(given) and isinstance(given[place], torch.device):
            wanted, given[place] = given[place], _cpu
    if wanted is not None and wanted.type == NAME:
        return device_index(wanted)
    if operands and index < 0:
        return operands[0].block.device
    return index


def _check_foreign(
    plan: Plan, operands: list[Operand], foreign: list[tuple[str, torch.Tensor]], index: int
) -> None:
    """Refuse host tensors beside device tensors, except numbers, as torch does on CUDA."""
    if not operands:
        return
    for name, tensor in foreign:
        if plan.mixed:
            if tensor.dim():
                _implicit_upload(tensor, index)
        elif tensor.dim() or plan.written[name]:
            _refuse(plan.name, operands[0].tensor, name, tensor)


def refuse_host_tensors(
    kernel: str, beside: torch.Tensor, foreign: list[tuple[str, torch.Tensor]]
) -> None:
    """Refuse host tensors as arguments of a kernel, except numbers."""
    for name, tensor in foreign:
        if tensor.dim():
            _refuse(kernel, beside, name, tensor)


def _refuse(kernel: str, beside: torch.Tensor, name: str, tensor: torch.Tensor) -> NoReturn:
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{beside.device} and cpu! (when checking argument for argument {name} "
        f"{tuple(tensor.shape)} {tensor.dtype} in method {kernel})"
    )


def _implicit_upload(tensor: torch.Tensor, index: int) -> None:
    """Record that torch uploads host indices by itself, and waits for the upload."""
    stream = current_stream(index)
    with lock:
        stack = stacks.take(stacks.DEEP)
        copies.host_access(tensor, write=False, what="an upload of host indices")
        transfers.record("H2D", How.BLOCKING, tensor, stream.stream_id, stack)
        stream.tick()
        host.sees(stream.clock)


def _track(plan: Plan, operands: list[Operand], index: int, blind: bool) -> Work:
    stream = current_stream(index)
    with lock:
        count = stream.tick()
        stack = stacks.take() if settings.tracking else ()
        work = Work(plan.name, stream, count, stack, blind)
        rows = _rows(plan, operands) if plan.rows is not None else None
        for one in operands:
            picked = rows if rows is not None and one is operands[0] else None
            tracker.touch(one.block, one.tensor, one.write, work, picked)
        if plan.syncs or _picks_by_mask(plan, operands):
            host.sees(stream.clock)
    return work


def _picks_by_mask(plan: Plan, operands: list[Operand]) -> bool:
    """Return whether a boolean index makes torch determine the positions, on the host."""
    return plan.mixed and any(one.tensor.dtype is torch.bool for one in operands[1:])


def _rows(plan: Plan, operands: list[Operand]) -> Rows | None:
    """Return the rows that an operator accesses, if they are selected by one list of ids."""
    assert plan.rows is not None
    target = operands[0]
    name = plan.names[plan.rows[1]]
    ids = [one for one in operands if one.name == name]
    tensor = target.tensor
    usable = (
        target.name == plan.names[plan.rows[0]]
        and ids
        and ids[0].tensor.dtype in (torch.int64, torch.int32)
    )
    return rows_of(tensor, ids[0].alias.reshape(-1).clone()) if usable else None


def _growing(
    operands: list[Operand], given: list[Any], kwargs: dict[str, Any]
) -> list[tuple[Operand, torch.Tensor]] | None:
    """Replace empty outputs that the operator may resize by CPU tensors of their own."""
    empty = [one for one in operands if one.write and one.name in _GROWS and not one.alias.numel()]
    if not empty:
        return None
    grown = [(one, torch.empty(0, dtype=one.tensor.dtype)) for one in empty]
    fresh = {id(one.alias): tensor for one, tensor in grown}
    given[:] = [fresh.get(id(value), value) for value in given]
    kwargs.update({name: fresh.get(id(value), value) for name, value in kwargs.items()})
    return grown


def _grow(grown: list[tuple[Operand, torch.Tensor]]) -> None:
    for one, tensor in grown:
        if tensor.shape != one.tensor.shape:
            give_memory(one.tensor, tensor)


def give_memory(tensor: torch.Tensor, base: torch.Tensor) -> None:
    """Make a device tensor use the memory of the CPU tensor `base` from now on."""
    new = sim_tensor(base, tensor.device.index)
    on_host(_set, tensor, new.untyped_storage(), new.storage_offset(), new.shape, new.stride())


def _one(
    plan: Plan,
    place: int,
    result: torch.Tensor,
    args: tuple[Any, ...],
    operands: list[Operand],
    work: Work,
) -> torch.Tensor:
    """Return the device tensor for one result of the CPU kernel."""
    kind, argument = plan.results[place] if place < len(plan.results) else plan.results[0]
    if kind is Result.NEW:
        tensor = sim_tensor(result, work.stream.device_index)
        with lock:
            if settings.tracking:
                tracker.made(tensor, work)
        return tensor
    if kind is Result.VIEW:
        return viewed(result, operands)
    if argument < len(args):
        return args[argument]
    return next(one.tensor for one in operands if one.name == plan.names[argument])


def viewed(result: torch.Tensor, operands: list[Operand]) -> torch.Tensor:
    """Return the view of a device tensor that corresponds to `result`, a view of its alias."""
    storage = result.untyped_storage()._cdata
    for one in operands:
        if one.alias.untyped_storage()._cdata != storage:
            continue
        tensor = one.tensor
        if result.dtype is not tensor.dtype:
            tensor = on_host(_view_as, tensor, result.dtype)
        start = one.block.start()
        offset = result.storage_offset() - start // result.element_size()
        return on_host(_as_strided, tensor, result.shape, result.stride(), offset)
    return sim_tensor(result, operands[0].block.device if operands else device_index(None))


def _many(
    plan: Plan,
    result: Any,
    args: tuple[Any, ...],
    operands: list[Operand],
    work: Work,
) -> Any:
    """Return the results of an operator that returns several, a list, or no tensor."""
    if not isinstance(result, (list, tuple)):
        return result
    made = []
    for place, item in enumerate(result):
        if isinstance(item, _Tensor):
            kind = place if len(plan.results) > 1 else 0
            made.append(_one(plan, kind, item, args, operands, work))
        elif isinstance(item, (list, tuple)):
            made.append([_one(plan, place, one, args, operands, work) for one in item])
        else:
            made.append(item)
    return type(result)(made) if type(result) in (list, tuple) else tuple(made)
