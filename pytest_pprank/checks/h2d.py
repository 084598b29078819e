"""Finds host tensors in place of device tensors, and copies between the two that are used early.

On device ``cuda`` the latter are seen if their source is rewritten before they are done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.checks.device_order import report_order, sites
from pytest_pprank.sglang.events.running import runs_models
from pytest_pprank.sglang.events.sites import call_sites

if TYPE_CHECKING:
    from pytest_pprank.devices.cuda.uploads import GuardedUploads
    from pytest_pprank.devices.sim.transfers import Transfer
    from pytest_pprank.oplog.file import Site
    from pytest_pprank.sglang.events.types import ForwardEntry

_UPLOAD = (
    "tensor.to(device, non_blocking=True) from pinned memory before the forward (SGLang: "
    "resolve_forward_inputs)"
)
_STAGING = (
    "write a staging buffer again only after the host has waited for the copy out of it "
    "(event.synchronize()), or take another buffer"
)
_FORWARD = ("model_executor/model_runner.py", ("forward", "_forward_raw"))


class H2D(Sanitizer):
    """Checks what enters the model, and listens to the simulated device."""

    name: ClassVar[str] = "h2d"
    _uploads: GuardedUploads | None = None

    def begin(self) -> None:
        if runs_models():
            self.watch.listen("forward", self._forward)
        if self.watch.pprank.device.startswith("sim"):
            from pytest_pprank.devices.sim.reports import Kind
            from pytest_pprank.devices.sim.transfers import listen

            kinds = (Kind.STAGING_REWRITTEN, Kind.READ_BEFORE_SYNC, Kind.COPY_IN_FLIGHT)
            report_order(self.watch, kinds)
            self.watch.at_end(listen(lambda copy: self.watch.guard(self._copied, copy)))
        elif self.watch.pprank.device.startswith("cuda"):
            from pytest_pprank.devices.cuda.uploads import GuardedUploads

            self._uploads = GuardedUploads(self._rewritten, self.watch)

    def end(self) -> None:
        """Look at the copies of the test, on device ``cuda``."""
        if self._uploads is not None:
            self._uploads.check()

    def _rewritten(self, text: str, stack: tuple[Site, ...]) -> None:
        self.watch.report(text, stack, _STAGING)

    def _forward(self, event: ForwardEntry) -> None:
        """Check that each tensor that the forward reads is on its device."""
        for tensor in event.on_host:
            text = f"a host tensor enters the model: {tensor.name} is {tensor.text}"
            self.watch.report(text, call_sites(), _UPLOAD)

    def _copied(self, copy: Transfer) -> None:
        """Report blocking copies to the device inside a forward: SGLang makes none there.

        A forgotten ``.to(device)`` raises nothing: SGLang 0.5.21 copies its inputs into static
        buffers by ``_foreach_copy_`` (srt/model_executor/cuda_graph_buffer_registry.py), which
        moves host tensors silently.
        """
        from pytest_pprank.devices.sim.transfers import How

        if copy.direction != "H2D" or copy.how is not How.BLOCKING:
            return
        frames = copy.frames
        if any(file.endswith(_FORWARD[0]) and name in _FORWARD[1] for file, _, name in frames):
            where = sites(frames)
            text = f"a host tensor inside the forward makes the host wait: {copy}"
            self.watch.report(text, where, _UPLOAD)
