"""torch's CUDA sanitizer (torch.cuda._sanitizer) as a source of findings with two stacks.

It follows streams, events and waits of the host through torch's own hooks, and takes each operator
of torch for one kernel that reads or writes whole tensors. It does not see kernels that are
launched past torch's dispatcher (Triton, SGLang's own), nor which stream NCCL uses.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.cuda._sanitizer import cuda_sanitizer

from pytest_pprank.frames import is_caller_code
from pytest_pprank.lifecycle import Cleanups
from pytest_pprank.oplog.file import Site
from pytest_pprank.rank.patches import patch
from pytest_pprank.rank.thread_modes import enter_in_all_threads

if TYPE_CHECKING:
    from torch.cuda._sanitizer import Access, UnsynchronizedAccessError

_BY_ROW = ("aten::index", "aten::index_put_", "aten::index_select", "aten::gather")
"""Operators that access rows which an index names: torch's sanitizer takes them for the whole."""
_SHOWN = 10
"""Maximum number of frames in a stack."""
Report = Callable[[str, tuple[Site, ...]], None]


def watch_order(report: Report, cleanups: Cleanups) -> None:
    """Call `report(text, stack)` for each pair of accesses that nothing orders, until the end."""
    handler: Any = cuda_sanitizer.dispatch.event_handler
    launch = handler._handle_kernel_launch

    def launched(*args: object) -> list[object]:
        for error in launch(*args):
            if not _may_be_of_other_rows(error):
                report(_text(error), _sites(error.current_access.stack_trace))
        return []  # torch would raise them and lose what the kernel returns

    cleanups.at_end(patch(handler, "_handle_kernel_launch", launched))
    enter_in_all_threads(cuda_sanitizer.dispatch, cleanups)


def _text(error: UnsynchronizedAccessError) -> str:
    now, before = error.current_access, error.previous_access
    earlier = _sites(before.stack_trace)
    head = f"unordered: {_access(now)}; nothing orders that after: {_access(before)}"
    # in the first line, so that the place takes part in the key of the finding
    head += f" ({earlier[0]})" if earlier else ""
    return "\n".join([head, *(f"  {site}" for site in earlier)])


def _may_be_of_other_rows(error: UnsynchronizedAccessError) -> bool:
    """Return whether both accesses are of some rows only, such as those of two requests."""
    return all(
        _operator(access) in _BY_ROW for access in (error.current_access, error.previous_access)
    )


def _operator(access: Access) -> str:
    return str(access.operator).partition("(")[0].partition(".")[0]


def _access(access: Access) -> str:
    does = "reads" if access.type.name == "READ" else "writes"
    where = f"stream {access.stream:#x}" if access.stream else "the default stream"
    return f"{_operator(access)} {does} {', '.join(access.aliases) or 'its output'} on {where}"


def _sites(stack: traceback.StackSummary) -> tuple[Site, ...]:
    """Return the frames to show, the innermost first."""
    frames = [frame for frame in reversed(stack) if is_caller_code(frame.filename)]
    return tuple(Site(frame.filename, frame.lineno or 0, frame.name) for frame in frames[:_SHOWN])
