"""Where SGLang or a test is, as frames: for what a finding shows."""

from __future__ import annotations

import os
import sys
from types import FrameType

from pytest_pprank.frames import is_caller_code
from pytest_pprank.oplog.file import Site
from pytest_pprank.sglang.compat.requests import is_request, wrapped_request

_DECORATORS = ("wrapper", "wrapped", "inner")
"""What decorators call the function that stands in for another: says nothing of the way there."""
_DEPTH = 6


def call_sites(depth: int = _DEPTH, frame: FrameType | None = None) -> tuple[Site, ...]:
    """Return where SGLang or the test is now, innermost first, without torch and this plugin.

    `frame`: where to begin; the caller's without it.
    """
    sites: list[Site] = []
    frame = frame or sys._getframe(1)
    while frame is not None and len(sites) < depth:
        code = frame.f_code
        if is_caller_code(code.co_filename) and code.co_name not in _DECORATORS:
            sites.append(Site(code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(sites)


def request_in_hand(depth: int = _DEPTH) -> str:
    """Return the id of the request that SGLang is busy with: the first Req, or holder of one, in a
    local variable of its functions, innermost first; empty where there is none.

    For what is taken for a request that the taker does not name.
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
    """Return function, file and line of the last calls of SGLang's that an exception came through,
    the innermost first, empty where there are none.
    """
    places, trace = [], error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        # by the module: a reverted function has no file of its own
        ours = str(frame.f_globals.get("__name__")).startswith("sglang.")
        if ours and frame.f_code.co_name not in _DECORATORS:
            file = os.path.basename(frame.f_code.co_filename)
            places.append(f"{qualified(frame)} ({file}:{trace.tb_lineno})")
        trace = trace.tb_next
    return " < ".join(places[: -count - 1 : -1])


def qualified(frame: FrameType) -> str:
    """Return class and function of a frame, as far as this Python knows (from 3.11)."""
    return str(getattr(frame.f_code, "co_qualname", frame.f_code.co_name))
