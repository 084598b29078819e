"""What the simulated device has seen going wrong under a test, as text: order, staging, copies.

Works on device ``sim`` alone; on any other there is nothing to drain.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_pprank.sglang.device_allowed import allowed
from pytest_pprank.worker.context import current_rank, is_rank

_FORWARD = ("model_executor/model_runner.py", ("forward", "_forward_raw"))
_SHOWN = 10


@dataclass(frozen=True)
class DeviceFinding:
    """One finding. `sanitizer` is "h2d" or "streams"; `text` has both sides' stacks."""

    sanitizer: str
    text: str

    def __str__(self) -> str:
        return f"{self.sanitizer}: {self.text}"


def findings() -> list[DeviceFinding]:
    """Return what was found in this process since the last call, and forget it."""
    if "pytest_pprank.devices.sim.module" not in sys.modules:
        return []
    return [*_ordering(), *_blocking_copies()]


def settle_device() -> None:
    """Let the host wait for the device: what a test does is not compared with what came before."""
    if "pytest_pprank.devices.sim.module" in sys.modules:
        from pytest_pprank.devices.sim import module, streams

        if module.installed():
            streams.synchronize()


def fail_on_findings() -> None:
    """Raise AssertionError that tells what was found since the last call."""
    __tracebackhide__ = True
    found = findings()
    if not found:
        return
    where = f" on rank {current_rank().rank}" if is_rank() else ""
    texts = [str(one).replace("\n", "\n  ") for one in found[:_SHOWN]]
    more = [f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    head = f"device sim has found {len(found)} wrong access(es){where}:"
    raise AssertionError("\n  ".join([head, *texts, *more]))


def _ordering() -> Iterator[DeviceFinding]:
    from pytest_pprank.devices.sim.reports import Kind
    from pytest_pprank.devices.sim.reports import findings as device_findings

    staging = (Kind.STAGING_REWRITTEN, Kind.READ_BEFORE_SYNC, Kind.COPY_IN_FLIGHT)
    for finding in device_findings():
        if not allowed(finding.first.frames, finding.second.frames):
            yield DeviceFinding("h2d" if finding.kind in staging else "streams", str(finding))


def _blocking_copies() -> Iterator[DeviceFinding]:
    """Copies to the device inside a forward that make the host wait: SGLang makes none there.

    A forgotten ``.to(device)`` raises nothing: SGLang 0.5.21 copies its inputs into static buffers
    by ``_foreach_copy_`` (srt/model_executor/cuda_graph_buffer_registry.py), which moves host
    tensors silently.
    """
    from pytest_pprank.devices.sim.transfers import How, take_transfers

    told = set()
    for transfer in take_transfers():
        if transfer.direction != "H2D" or transfer.how is not How.BLOCKING:
            continue
        frames = transfer.frames
        if not any(f.endswith(_FORWARD[0]) and n in _FORWARD[1] for f, _, n in frames):
            continue
        if allowed(frames, ()) or tuple(frames[:3]) in told:
            continue
        told.add(tuple(frames[:3]))
        places = "\n".join(f"    {file}:{line} in {name}" for file, line, name in frames[:8])
        yield DeviceFinding(
            "h2d",
            f"a host tensor inside the forward: {transfer}\n{places}\n"
            "  usual fix: tensor.to(device, non_blocking=True) from pinned memory before the "
            "forward (SGLang: resolve_forward_inputs)",
        )
