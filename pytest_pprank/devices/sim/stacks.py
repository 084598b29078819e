"""Python stacks, captured fast and made readable only when they are shown.

A stack is a flat tuple of (code object, last instruction) pairs, the innermost frame first. Frames
themselves are not kept: they would keep their tensors alive.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType

from pytest_pprank.frames import Owner, owner_of

Stack = tuple[CodeType | int, ...]
_DEPTH = 28
DEEP = 80
"""Depth of stacks that are captured rarely."""


def take(depth: int = _DEPTH) -> Stack:
    """Return the stack of the caller's caller."""
    frame: FrameType | None = sys._getframe(2)
    taken: list[CodeType | int] = []
    add = taken.append
    for _ in range(depth):
        if frame is None:
            break
        add(frame.f_code)
        add(frame.f_lasti)
        frame = frame.f_back
    return tuple(taken)


def is_user_code(code: CodeType) -> bool:
    """Return whether code is neither torch's nor this plugin's; SGLang counts as user code."""
    file = code.co_filename
    return owner_of(file) not in (Owner.TORCH, Owner.PLUGIN) and not file.startswith("<frozen")


def frames(stack: Stack) -> list[tuple[str, int, str]]:
    """Return (file, line, function) of the frames in user code, the innermost first."""
    found = []
    for code, instruction in zip(stack[::2], stack[1::2], strict=True):
        assert isinstance(code, CodeType)
        assert isinstance(instruction, int)
        if is_user_code(code):
            found.append((code.co_filename, _line(code, instruction), code.co_name))
    return found


def place(stack: Stack, most: int = 6) -> Stack:
    """Return the innermost frames of user code, which identify a place in the program."""
    found: list[CodeType | int] = []
    for code, instruction in zip(stack[::2], stack[1::2], strict=True):
        assert isinstance(code, CodeType)
        if is_user_code(code):
            found += (code, instruction)
            if len(found) == 2 * most:
                break
    return tuple(found)


def _line(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno
