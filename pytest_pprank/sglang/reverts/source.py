"""The source of one function, edited without losing its line numbers.

Edits are made in the text, because a match may be part of a statement. The result is parsed again
after each edit. Every line keeps its number in the file, so that tracebacks of the edited function
still point there.
"""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Position = tuple[int, int]

# Put in front of an indented definition, so that it parses as a block. One line.
_BLOCK = "if True:\n"
_LAYOUT = frozenset(
    {
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.COMMENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)


class Refused(Exception):
    """An edit that cannot be made; the caller adds revert and target to the message."""


class Misfit(Refused):
    """An edit that does not match this source exactly once: it is made for another version."""


@dataclass(frozen=True)
class Span:
    """A range of the function's text: (row, column) from 0, in characters.

    ``whole``: it is one or more complete statements. ``lines``: it is complete lines, whatever
    their content.
    """

    start: Position
    end: Position
    whole: bool
    lines: bool = False


def tokens_of(text: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens of ``text`` except layout and comments, as far as it can be tokenized."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in _LAYOUT:
                yield token
    except (tokenize.TokenError, SyntaxError):
        return  # part of a statement may end early (an open bracket): keep the tokens so far


def holds_code(text: str) -> bool:
    """Return whether ``text`` is more than blank lines and comments."""
    return next(tokens_of(text), None) is not None


def _is_header(text: str) -> bool:
    tokens = list(tokens_of(f"(\n{text}\n)"))  # in brackets indentation does not matter
    return len(tokens) > 2 and tokens[-2].string == ":"


def reindent(text: str, indent: str) -> str:
    """Indent all lines of ``text`` except the first, and except lines inside strings."""
    lines = textwrap.dedent(text).strip("\n").split("\n")
    inside = _rows_inside_strings("\n".join(lines))
    return "\n".join(
        line if row == 0 or row in inside or not line.strip() else indent + line
        for row, line in enumerate(lines)
    )


def _rows_inside_strings(text: str) -> set[int]:
    opening = getattr(tokenize, "FSTRING_START", -1)  # Python 3.12 and later
    closing = getattr(tokenize, "FSTRING_END", -1)
    rows: set[int] = set()
    starts: list[int] = []
    for token in tokens_of(text):
        if token.type in (tokenize.STRING, opening):
            starts.append(token.start[0])
        if token.type in (tokenize.STRING, closing):
            rows.update(range(starts.pop(), token.end[0]))
    return rows


@dataclass(frozen=True)
class FunctionSource:
    """The lines of a definition, including decorators, each with its line number in the file."""

    lines: tuple[str, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, node: FunctionNode, file_lines: list[str]) -> FunctionSource:
        """Cut the definition ``node`` out of its file's lines."""
        first, last = first_line(node), node.end_lineno or node.lineno
        return cls(tuple(file_lines[first - 1 : last]), tuple(range(first, last + 1)))

    @property
    def text(self) -> str:
        """The definition, below one line that makes it parse."""
        head = _BLOCK if self.lines[0][:1].isspace() else "\n"
        return head + "\n".join(self.lines) + "\n"

    @cached_property
    def node(self) -> FunctionNode:
        """The parsed definition, which starts in line 2 of `text`. Raises `Refused`."""
        try:
            tree = ast.parse(self.text)
        except SyntaxError as error:
            line = self.number_of((error.lineno or 2) - 2)
            reason = f"the edited function does not parse: {error.msg} (near line {line})"
            raise Refused(reason) from None
        body = tree.body
        if self.text.startswith(_BLOCK) and isinstance(body[0], ast.If):
            body = body[0].body
        if len(body) != 1 or not isinstance(body[0], FunctionNode):
            raise Refused("what the edit gives is not one function")
        return body[0]

    def numbered_node(self) -> FunctionNode:
        """Return a new parsed definition whose nodes have the line numbers of the file."""
        fresh = FunctionSource(self.lines, self.numbers).node
        for node in ast.walk(fresh):
            if hasattr(node, "lineno"):
                _renumber(node, self.numbers)
        return fresh

    def number_of(self, row: int) -> int:
        """Return the line number in the file of a row from 0 (clamped to the definition)."""
        return self.numbers[max(0, min(row, len(self.numbers) - 1))]

    def span(self, first: ast.AST, last: ast.AST, *, whole: bool) -> Span:
        """Return the range of the nodes from ``first`` to ``last``."""
        start = (first_line(first) - 2, first.col_offset)  # type: ignore[attr-defined]
        end = (last.end_lineno - 2, last.end_col_offset)  # type: ignore[attr-defined]
        return Span(self._characters(start), self._characters(end), whole)

    def _characters(self, position: Position) -> Position:
        # ast counts columns in UTF-8 bytes; tokenize and str in characters
        row, column = position
        return row, len(self.lines[row].encode()[:column].decode())

    def replace(self, span: Span, text: str) -> FunctionSource:
        """Replace ``span`` by ``text``, indented as the line on which the span starts."""
        if span.lines:
            return self._replace_lines(span, text)
        if span.whole:
            self._demand_own_lines(span)
            text = text if holds_code(text) else "pass"
        elif self._ends_in_colon(span) and not _is_header(text):
            # otherwise the block below would silently become part of the previous one
            raise Refused("the match ends with the header of a block, the replacement does not")
        return self._put(span.start, span.end, reindent(text, self._indent(span)))

    def _replace_lines(self, span: Span, text: str) -> FunctionSource:
        """Replace lines as SGLang's patcher does, but put ``pass`` into an empty block."""
        edited = self._put_lines(span, text)
        if holds_code(text) or edited._parses():
            return edited
        return self._put_lines(span, "pass")

    def _put_lines(self, span: Span, text: str) -> FunctionSource:
        first, last = span.start[0], span.end[0]
        if text.strip():
            indent = self._indent(span)
            return self._put((first, 0), span.end, indent + reindent(text, indent))
        return FunctionSource(
            (*self.lines[:first], *self.lines[last + 1 :]),
            (*self.numbers[:first], *self.numbers[last + 1 :]),
        )

    def _parses(self) -> bool:
        try:
            return bool(self.lines and self.node)
        except Refused:
            return False

    def prepend(self, span: Span, text: str) -> FunctionSource:
        """Insert ``text`` on lines of its own before ``span``."""
        self._demand_own_lines(span)
        indent = self._indent(span)
        return self._put(span.start, span.start, f"{reindent(text, indent)}\n{indent}")

    def append(self, span: Span, text: str) -> FunctionSource:
        """Insert ``text`` on lines of its own after ``span``."""
        self._demand_own_lines(span)
        indent = self._indent(span)
        return self._put(span.end, span.end, f"\n{indent}{reindent(text, indent)}")

    def _indent(self, span: Span) -> str:
        line = self.lines[span.start[0]]
        return line[: len(line) - len(line.lstrip())]

    def _ends_in_colon(self, span: Span) -> bool:
        return self.lines[span.end[0]][: span.end[1]].endswith(":")

    def _demand_own_lines(self, span: Span) -> None:
        before = self.lines[span.start[0]][: span.start[1]]
        after = self.lines[span.end[0]][span.end[1] :]
        if before.strip() or after.partition("#")[0].strip():
            number = self.number_of(span.start[0])
            raise Refused(f"the match in line {number} shares its line with other code")

    def _put(self, start: Position, end: Position, text: str) -> FunctionSource:
        head = self.lines[start[0]][: start[1]]
        tail = self.lines[end[0]][end[1] :]
        new = (head + text + tail).split("\n")
        first, last = self.numbers[start[0]], self.numbers[end[0]]
        numbers = [min(first + row, last) for row in range(len(new))]
        return FunctionSource(
            (*self.lines[: start[0]], *new, *self.lines[end[0] + 1 :]),
            (*self.numbers[: start[0]], *numbers, *self.numbers[end[0] + 1 :]),
        )


def first_line(node: ast.AST) -> int:
    """Return the line on which a node starts, including its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    line: int = node.lineno  # type: ignore[attr-defined]
    return min([line, *(decorator.lineno for decorator in decorators)])


def _renumber(node: ast.AST, numbers: tuple[int, ...]) -> None:
    at: ast.expr = node  # type: ignore[assignment]  # any node with a position
    at.lineno = numbers[at.lineno - 2]
    at.end_lineno = numbers[(at.end_lineno or 2) - 2]
    if at.lineno == at.end_lineno:  # inserted lines share one number: keep start <= end
        at.end_col_offset = max(at.col_offset, at.end_col_offset or 0)
