"""Source lines of SGLang or of a test, for findings to show."""

from __future__ import annotations

import os
import sys
from types import FrameType

from pytest_pprank.frames import is_caller_code
from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.compat.requests import is_request, wrapped_request

_DECORATORS = ("wrapper", "wrapped", "inner")
"""Names that decorators give to wrappers; frames of these names are left out."""
_DEPTH = 6


def call_sites(depth: int = _DEPTH, frame: FrameType | None = None) -> tuple[Site, ...]:
    """Return the current call sites in SGLang or the test, innermost first.

    Frames of torch and of this plugin are left out. `frame`: where to begin; default: the caller.
    """
    sites: list[Site] = []
    frame = frame or sys._getframe(1)
    while frame is not None and len(sites) < depth:
        code = frame.f_code
        if is_caller_code(code.co_filename) and code.co_name not in _DECORATORS:
            sites.append(Site(code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(sites)


def current_request_id(depth: int = _DEPTH) -> str:
    """Return the id of the request that SGLang is working on; "" if there is none.

    This is the first Req (or object that wraps one) in a local variable of SGLang's functions,
    innermost first. Used for allocations that do not name the request they are for.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and depth:
        if is_caller_code(frame.f_code.co_filename):
            depth -= 1
            for value in frame.f_locals.values():
                req = wrapped_request(value)
                if is_request(req):
                    return str(req.rid)
        frame = frame.f_back
    return ""


def innermost_places(error: BaseException, count: int = 3) -> str:
    """Return function, file and line of SGLang's last frames in an exception's traceback.

    Innermost first; "" if there are none.
    """
    places, trace = [], error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        # by the module's name: a reverted function has no file of its own
        ours = str(frame.f_globals.get("__name__")).startswith("sglang.")
        if ours and frame.f_code.co_name not in _DECORATORS:
            file = os.path.basename(frame.f_code.co_filename)
            places.append(f"{qualified(frame)} ({file}:{trace.tb_lineno})")
        trace = trace.tb_next
    return " < ".join(places[: -count - 1 : -1])


def qualified(frame: FrameType) -> str:
    """Return the qualified name of a frame's function (the plain name before Python 3.11)."""
    return str(getattr(frame.f_code, "co_qualname", frame.f_code.co_name))
