"""Guards non-blocking copies from pinned memory to a GPU: no source is rewritten too early.

Behind such a copy, on its stream, the source is copied once more, to memory that nobody else has,
after the stream was held for a moment: a copy as late as the program allows. A host that rewrites
the source without a wait does it before that. `check` compares with what the source was; nothing
waits before that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch

from pytest_pprank.lifecycle import Cleanups
from pytest_pprank.oplog.file import Site
from pytest_pprank.rank.patches import patch
from pytest_pprank.sglang.events.sites import call_sites

_HOLD_CYCLES = 2_000_000
"""About 1 ms of a GPU; the host needs a tenth of that to return to its caller."""
_FIRST, _FIRST_HOLD_CYCLES = 4, 20_000_000
"""The first copies of a test: code that runs for the first time takes longer."""
_MOST_BYTES = 1 << 26
"""How much is kept on the device before it is compared."""
Report = Callable[[str, tuple[Site, ...]], None]


class GuardedUploads:
    """The guards of one test. `report(text, stack)` is called for each copy that went wrong."""

    def __init__(self, report: Report, cleanups: Cleanups) -> None:
        self._report = report
        self._open: list[_Upload] = []
        self._bytes = self._count = 0
        for name, parts in _METHODS.items():
            method = getattr(torch.Tensor, name)
            cleanups.at_end(patch(torch.Tensor, name, self._guarded(method, parts)))

    def check(self) -> None:
        """Wait for the copies so far, and report those whose source was rewritten."""
        done, self._open, self._bytes = self._open, [], 0
        if done:
            torch.cuda.synchronize()
        for upload in done:
            if upload.went_wrong():
                self._report(upload.text(), upload.stack)

    def _guarded(self, method: _Method, parts: _Parts) -> _Method:
        @wraps(method)
        def call(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            source = parts(tensor, args, kwargs)
            if source is None or torch.cuda.is_current_stream_capturing():
                return method(tensor, *args, **kwargs)
            sent = _unwatched_copy(torch.empty_like(source, pin_memory=True), source, False)
            arrived = method(tensor, *args, **kwargs)
            if arrived.is_cuda:
                self._copy_late(source, sent, arrived.device)
            return arrived

        return call

    def _copy_late(self, source: torch.Tensor, sent: torch.Tensor, device: torch.device) -> None:
        late, stack = torch.empty_like(source, device=device), call_sites()
        self._count += 1
        with torch.cuda.device(device):
            torch.cuda._sleep(_FIRST_HOLD_CYCLES if self._count <= _FIRST else _HOLD_CYCLES)
            _unwatched_copy(late, source, True)
        self._open.append(_Upload(late, sent, stack))
        self._bytes += late.nbytes
        if self._bytes > _MOST_BYTES:
            self.check()


@dataclass(frozen=True)
class _Upload:
    late: torch.Tensor
    sent: torch.Tensor
    stack: tuple[Site, ...]

    def went_wrong(self) -> bool:
        late, sent = self.late.cpu(), self.sent
        if late.is_floating_point():
            late, sent = late.nan_to_num(), sent.nan_to_num()
        return not torch.equal(late, sent)

    def text(self) -> str:
        dtype = str(self.sent.dtype).removeprefix("torch.")
        what = f"{dtype}{[*self.sent.shape]}"
        return f"{what} in pinned memory was written while a copy could still read it"


_Method = Callable[..., torch.Tensor]
_Args = tuple[object, ...]
_Keywords = dict[str, object]
_Parts = Callable[[torch.Tensor, _Args, _Keywords], "torch.Tensor | None"]
"""Returns the source of a call that is a non-blocking upload from pinned memory, else None."""


def _unwatched_copy(to: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> torch.Tensor:
    """Copy by torch's own method, which a test's guards do not replace."""
    return torch._C.TensorBase.copy_(to, source, non_blocking)


def _of_to(tensor: torch.Tensor, args: _Args, kwargs: _Keywords) -> torch.Tensor | None:
    return tensor if _without_wait(args, kwargs) and _is_pinned(tensor) else None


def _of_copy(tensor: torch.Tensor, args: _Args, kwargs: _Keywords) -> torch.Tensor | None:
    source = args[0] if args else kwargs.get("src")
    uploads = tensor.is_cuda and _without_wait(args[1:], kwargs)
    return source if uploads and _is_pinned(source) else None


def _without_wait(args: _Args, kwargs: _Keywords) -> bool:
    return bool(kwargs.get("non_blocking")) or any(arg is True for arg in args)


def _is_pinned(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.is_pinned()


_METHODS: dict[str, _Parts] = {"to": _of_to, "cuda": _of_to, "copy_": _of_copy}
