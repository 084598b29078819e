"""Copies between host and device and within the device, run as late as CUDA's rules allow."""

from __future__ import annotations

import ctypes

import torch

from pytest_pprank.devices.sim import stacks, tracker, transfers
from pytest_pprank.devices.sim.accesses import Work
from pytest_pprank.devices.sim.memory import Block, byte_range, is_sim, operand
from pytest_pprank.devices.sim.pinned import is_pinned
from pytest_pprank.devices.sim.reports import Kind, Side, describe, reports
from pytest_pprank.devices.sim.settings import settings
from pytest_pprank.devices.sim.streams import Stream, current_stream, host, join, lock
from pytest_pprank.devices.sim.transfers import How

# the originals, without the checks that `entry_points` adds to torch.Tensor's methods
_copy = torch._C.TensorBase.copy_
_fill = torch._C.TensorBase.fill_

_in_flight: list[DeferredCopy] = []
_hosts: dict[int, list[DeferredCopy]] = {}
"""Copies that the host has not waited for, by the address of their host storage."""


class DeferredCopy:
    """A copy between pinned memory and the device that the host has not waited for.

    Host to device: the destination contains poison until an access that is ordered after the copy,
    and the source may be read until then. Device to host: the values are saved at once, and the
    destination contains poison until the host has waited.
    """

    def __init__(
        self, to_device: bool, pinned: torch.Tensor, block: Block, alias: torch.Tensor, work: Work
    ) -> None:
        self.to_device, self.pinned, self.block, self.work = to_device, pinned, block, work
        self.stream: Stream = work.stream
        self.number = work.number
        self.source = pinned if to_device else alias.clone()
        self.target = alias if to_device else pinned
        self.before = _bytes(pinned) if to_device else None
        self.ran = False
        if settings.poison:
            poison(self.target)
        if to_device:
            block.pending.append(self)
        _in_flight.append(self)
        _hosts.setdefault(pinned.untyped_storage().data_ptr(), []).append(self)

    def run(self) -> None:
        """Perform the copy, unless it has been performed."""
        if self.ran:
            return
        self.ran = True
        with torch.inference_mode():
            _copy(self.target, self.source)
        if self.to_device:
            self.block.pending.remove(self)
            self.check_source()

    def check_source(self) -> None:
        """Report a source whose contents have changed since the copy was enqueued."""
        if self.before is not None and _bytes(self.pinned) != self.before:
            self.rewritten("found to be rewritten (the writer is not known)", stacks.take())

    def rewritten(self, what: str, stack: stacks.Stack) -> None:
        """Report that the host has written to the source."""
        self.before = None
        second = Side(what, "on the host", stack)
        self._report(Kind.STAGING_REWRITTEN, second)

    def read(self, what: str, stack: stacks.Stack) -> None:
        """Report that the host has read the destination."""
        second = Side(what, "on the host", stack)
        self._report(Kind.READ_BEFORE_SYNC, second)

    def _report(self, kind: Kind, second: Side) -> None:
        # the host's address first: that memory was accessed
        addresses = (self.pinned.untyped_storage().data_ptr(), self.block.ptr)
        reports.add(kind, self._tensor(), addresses, self.side(), second)

    def end(self) -> None:
        """Perform the copy and stop tracking it: the host has waited for it."""
        self.run()
        self.check_source()
        address = self.pinned.untyped_storage().data_ptr()
        _hosts[address].remove(self)
        if not _hosts[address]:
            del _hosts[address]

    def side(self) -> Side:
        """Return the copy as one side of a finding."""
        return Side(f"{self.work.what} of {self._tensor()}", f"on {self.stream!r}", self.work.stack)

    def _tensor(self) -> str:
        return describe(self.pinned.dtype, self.pinned.shape)


def _bytes(tensor: torch.Tensor) -> bytes:
    """Return the current contents of a dense host tensor."""
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


def poison(tensor: torch.Tensor) -> None:
    """Fill memory with values that stand out: NaN, or integers close to their maximum."""
    with torch.inference_mode():
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            _fill(tensor, float("nan"))
        elif tensor.dtype is torch.bool:
            _fill(tensor, True)
        else:
            most = torch.iinfo(tensor.dtype).max
            _fill(tensor, most - 0xDEAD % (most // 2))


def _after_host_wait() -> None:
    """Perform the copies that the host has waited for."""
    if not _in_flight:
        return
    seen = host.clock
    done = [copy for copy in _in_flight if seen.get(copy.stream.stream_id, 0) >= copy.number]
    if done:
        _in_flight[:] = [copy for copy in _in_flight if copy not in done]
        for copy in done:
            copy.end()


host.after_wait(_after_host_wait)


def host_access(tensor: torch.Tensor, *, write: bool, what: str) -> None:
    """Report copies that the host must wait for before this access to a CPU tensor."""
    if not _hosts or not tensor.is_cpu or tensor.layout is not torch.strided:
        return
    address = tensor.untyped_storage().data_ptr()
    if address not in _hosts:
        return
    with lock:
        for copy in () if settings.untracked else tuple(_hosts.get(address, ())):
            lo, hi = byte_range(tensor)
            first, last = byte_range(copy.pinned)
            if lo >= last or first >= hi:
                continue
            if not copy.to_device:
                copy.read(f"{what} {'writes' if write else 'reads'} the destination", stacks.take())
            elif write and copy.before is not None:
                copy.rewritten(f"{what} writes the source", stacks.take())


def in_flight() -> list[DeferredCopy]:
    """Return the copies that the host has not waited for."""
    return list(_in_flight)


def copies_into(tensor: torch.Tensor) -> list[DeferredCopy]:
    """Return the copies into a device tensor that have not been performed."""
    block, _ = operand(tensor)
    lo, hi = byte_range(tensor)
    ranges = [(copy, byte_range(copy.target)) for copy in block.pending]
    origin = block.start()
    return [copy for copy, (a, b) in ranges if a - origin < hi and lo < b - origin]


def copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> torch.Tensor:
    """Copy as ``target.copy_(source, non_blocking)`` does on CUDA; one of them is on the device."""
    to_device, from_device = is_sim(target), is_sim(source)
    if to_device and from_device:
        return _within_device(target, source)
    if not _plain(target, source):
        return _with_temporaries(target, source, non_blocking)
    if to_device:
        _upload(target, source, non_blocking)
    else:
        _download(target, source, non_blocking)
    return target


def _plain(target: torch.Tensor, source: torch.Tensor) -> bool:
    """Return whether a single memcpy is enough."""
    if target.dtype is not source.dtype or target.shape != source.shape:
        return False
    if target.is_contiguous() and source.is_contiguous():
        return True
    lo, hi = byte_range(target)
    return bool(target.stride() == source.stride() and hi - lo == target.nbytes)


def _with_temporaries(
    target: torch.Tensor, source: torch.Tensor, non_blocking: bool
) -> torch.Tensor:
    """Copy with conversions, as ATen's Copy.cu: on the device if non-blocking, else on the host."""
    converts_source = is_sim(source) == non_blocking
    if converts_source:
        dense = target if target.is_contiguous() else target.new_empty(target.shape)
        plain = source.to(target.dtype).expand_as(target).contiguous()
    else:
        same = target.dtype is source.dtype and target.is_contiguous()
        dense = target if same else target.new_empty(target.shape, dtype=source.dtype)
        plain = source.expand_as(target).contiguous()
    copy(dense, plain, non_blocking)
    if dense is not target:
        target.copy_(dense, non_blocking)
    return target


def _within_device(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    (block, alias), (other, other_alias) = operand(target), operand(source)
    stream = current_stream(other.device)
    with lock:
        if block.device != other.device:  # a peer copy uses the current streams of both devices
            join(stream.clock, current_stream(block.device).clock)
        work = tracker.begin("aten::copy_", stream)
        tracker.touch(other, source, False, work)
        tracker.touch(block, target, True, work)
        if block.device != other.device:
            join(current_stream(block.device).clock, stream.clock)
    _copy(alias, other_alias)
    return target


def _deferred(pinned: torch.Tensor, non_blocking: bool) -> bool:
    return settings.deferred and non_blocking and pinned.numel() > 0 and is_pinned(pinned)


def _upload(target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
    block, alias = operand(target)
    stream = current_stream(block.device)
    late = _deferred(source, non_blocking)
    with lock:
        stack = stacks.take(stacks.DEEP)
        work = Work("host-to-device copy", stream, stream.tick(), stack)
        _finish_downloads(source, stream)
        tracker.touch(block, target, True, work)
        how = How.ASYNC if late else How.STAGED if non_blocking else How.BLOCKING
        transfers.record("H2D", how, source, stream.stream_id, stack)
        if late:
            DeferredCopy(True, source, block, alias, work)
            return
        _copy(alias, source)
        if not non_blocking:
            host.sees(stream.clock)


def _finish_downloads(source: torch.Tensor, stream: Stream) -> None:
    """Perform this stream's earlier copies into the host buffer `source`, which are ordered."""
    for earlier in list(_hosts.get(source.untyped_storage().data_ptr(), ()) if _hosts else ()):
        if not earlier.to_device:
            if stream.clock.get(earlier.stream.stream_id, 0) >= earlier.number:
                earlier.run()
            else:
                earlier.read("a host-to-device copy reads the destination", stacks.take())


def _download(target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
    block, alias = operand(source)
    stream = current_stream(block.device)
    late = _deferred(target, non_blocking)
    with lock:
        stack = stacks.take(stacks.DEEP)
        work = Work("device-to-host copy", stream, stream.tick(), stack)
        tracker.touch(block, source, False, work)
        how = How.ASYNC if late else How.BLOCKING
        transfers.record("D2H", how, target, stream.stream_id, stack)
        if late:
            DeferredCopy(False, target, block, alias, work)
            return
        host.sees(stream.clock)  # a copy into pageable memory always blocks
        _copy(target, alias)
