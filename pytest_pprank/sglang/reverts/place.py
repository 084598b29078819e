"""Finds the place of an edit by its position: for edits made by a program for one installation."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from .source import FunctionSource, Position, Span


@dataclass(frozen=True)
class Place:
    """A range of a function's text, from `start` to `end` (excluded): (row, column) from 0.

    Rows count from the first line of the definition, with its decorators; columns in characters.
    ``text`` must stand there. ``whole``: it is one or more complete statements.
    """

    start: Position
    end: Position
    text: str
    whole: bool = False

    def find(self, function: FunctionSource) -> list[Span]:
        """Return the place; nothing if another text stands there."""
        there = text_between(function.lines, self.start, self.end) == self.text
        return [Span(self.start, self.end, self.whole)] if there else []

    def describe(self) -> str:
        """Return text and position in one line."""
        row, column = self.start
        return f"`{' '.join(self.text.split())[:160]}` in row {row}, column {column}"

    def nearest(self, function: FunctionSource) -> ast.stmt | None:
        """Return None: what is near in the text is not what was meant."""
        del function
        return None


def text_between(lines: tuple[str, ...], start: Position, end: Position) -> str:
    """Return the text of a range; empty if it is not inside `lines`."""
    (first, left), (last, right) = start, end
    if not first <= last < len(lines):
        return ""
    if first == last:
        return lines[first][left:right]
    return "\n".join((lines[first][left:], *lines[first + 1 : last], lines[last][:right]))
