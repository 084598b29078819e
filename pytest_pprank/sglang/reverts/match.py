"""Finds the place of an edit in a function: by lines, by statement, by tokens, or by shape."""

from __future__ import annotations

import ast
import difflib
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest

from .source import FunctionSource, Span, tokens_of

_CLOSING = frozenset(")]}")
# A match by tokens must start and end at the edge of a line or next to one of these, so
# that "x = 1" does not match inside "x = 1 + y" or "self.x = 1".
_MAY_PRECEDE = frozenset("([{,;:") | {
    *("if", "elif", "else", "while", "for", "in", "with", "return", "assert", "and", "or")
}
_MAY_FOLLOW = frozenset(")]},;:") | {"if", "else", "for", "and", "or", "as"}


@dataclass(frozen=True)
class Text:
    """Source text to find; layout, comments and quotes make no difference.

    First, lines are compared as SGLang's patcher does: if they match exactly once, that is the
    place, because comments and blank lines distinguish places that have the same syntax. Otherwise
    whole statements are compared, as syntax trees, with consecutive statements of one block. A text
    that is only part of a statement (the header of an ``if``, one argument of a call) is compared
    token by token.
    """

    text: str

    def find(self, function: FunctionSource) -> list[Span]:
        """Return all places where the text occurs."""
        lines = _equal_lines(self.text, function)
        if len(lines) == 1:
            return lines
        wanted = _statements(self.text)
        found = _equal_statements(wanted, function) if wanted else []
        return found or _equal_tokens(self.text, function)

    def describe(self) -> str:
        """Return the text in one line."""
        return f"`{_one_line(textwrap.dedent(self.text), 160)}`"

    def nearest(self, function: FunctionSource) -> ast.stmt | None:
        """Return the statement that is most similar to the text."""
        wanted = " ".join(token.string for token in tokens_of(self.text))[:400]
        matcher = difflib.SequenceMatcher(autojunk=False)
        matcher.set_seq2(wanted)

        def likeness(statement: ast.stmt, *, quick: bool) -> float:
            code = " ".join(token.string for token in tokens_of(ast.unparse(statement)))
            matcher.set_seq1(code[: len(wanted) + 20])
            return matcher.quick_ratio() if quick else matcher.ratio()

        ranked = sorted(_all_statements(function), key=lambda s: likeness(s, quick=True))
        return max(ranked[-8:], key=lambda s: likeness(s, quick=False), default=None)


@dataclass(frozen=True)
class Shape:
    """A statement described by its kind and by the names in it.

    ``kind``: the name of an `ast` class. ``mentions``: names, attributes or keyword arguments that
    occur anywhere in the statement; ``assigns``: those that it assigns to. Of nested statements
    that match, the innermost is taken. ``part`` narrows the place to one expression: the ``test``
    of an If, the (first) ``targets`` of an Assign.
    """

    kind: str
    mentions: tuple[str, ...] = ()
    assigns: tuple[str, ...] = ()
    part: str = ""

    def find(self, function: FunctionSource) -> list[Span]:
        """Return all places with a statement of this shape."""
        fitting = [s for s in _all_statements(function) if self._fits(s)]
        innermost = [s for s in fitting if not any(n in fitting for n in _inside(s))]
        return [self._span(function, statement) for statement in innermost]

    def describe(self) -> str:
        """Return the description in words."""
        article = "an" if self.kind[:1] in "AEIOU" else "a"
        text = f"{article} {self.kind} statement that mentions {', '.join(self.mentions)}"
        return f"{text} and assigns {', '.join(self.assigns)}" if self.assigns else text

    def nearest(self, function: FunctionSource) -> ast.stmt | None:
        """Return the statement of this kind that has the most of these names."""
        wanted = {*self.mentions, *self.assigns}
        candidates = [s for s in _all_statements(function) if type(s).__name__ == self.kind]
        best = max(candidates, key=lambda s: len(wanted & _mentioned(s)), default=None)
        return best if best is not None and wanted & _mentioned(best) else None

    def _fits(self, statement: ast.stmt) -> bool:
        return (
            type(statement).__name__ == self.kind
            and _mentioned(statement).issuperset(self.mentions)
            and _assigned(statement).issuperset(self.assigns)
        )

    def _span(self, function: FunctionSource, statement: ast.stmt) -> Span:
        if not self.part:
            return function.span(statement, statement, whole=True)
        parts = getattr(statement, self.part)  # "targets" is a list, "test" one expression
        node = parts[0] if isinstance(parts, list) else parts
        return function.span(node, node, whole=False)


def _equal_lines(text: str, function: FunctionSource) -> list[Span]:
    """Return where the lines of `text` occur, ignoring indentation, in the body of a function.

    Decorators are excluded: they run once, at import.
    """
    wanted = [line.strip() for line in text.strip().split("\n")]
    lines = [line.strip() for line in function.lines]
    rows = range(function.node.lineno - 2, len(lines) - len(wanted) + 1)
    starts = [row for row in rows if lines[row : row + len(wanted)] == wanted]
    return [_line_span(function, row, row + len(wanted) - 1) for row in starts]


def _line_span(function: FunctionSource, first: int, last: int) -> Span:
    line = function.lines[first]
    start = first, len(line) - len(line.lstrip())
    return Span(start, (last, len(function.lines[last])), whole=False, lines=True)


def _statements(text: str) -> list[str]:
    """Parse ``text``; return its statements in comparable form, or none if it does not parse."""
    try:
        return [ast.dump(node) for node in ast.parse(textwrap.dedent(text)).body]
    except SyntaxError:
        return []


def _equal_statements(wanted: list[str], function: FunctionSource) -> list[Span]:
    found = []
    for block in _blocks(function):
        dumps = [ast.dump(statement) for statement in block]
        for first in range(len(block) - len(wanted) + 1):
            last = first + len(wanted)
            if dumps[first:last] == wanted:
                found.append(function.span(block[first], block[last - 1], whole=True))
    return found


def _equal_tokens(text: str, function: FunctionSource) -> list[Span]:
    wanted = _essential(_fragment_tokens(text))
    ends_in_comma = bool(wanted) and wanted[-1].string == ","
    wanted = wanted[:-1] if ends_in_comma else wanted
    if not wanted:
        return []
    in_body = _body_tokens(function)
    tokens = _essential(in_body)
    keys, sought = [_key(t) for t in tokens], [_key(t) for t in wanted]
    found = []
    for first in range(len(keys) - len(sought) + 1):
        last = first + len(sought) - 1
        if keys[first : last + 1] == sought and _is_bounded(tokens, first, last):
            # a trailing comma was dropped on both sides; if the text has one, the match includes it
            following = in_body[in_body.index(tokens[last]) + 1 :][:1]
            comma = following if ends_in_comma and [t.string for t in following] == [","] else []
            found.append(_token_span(tokens[first], [tokens[last], *comma][-1]))
    return found


def _fragment_tokens(text: str) -> list[tokenize.TokenInfo]:
    # Inside brackets the tokenizer ignores indentation.
    bracketed = f"(\n{text}\n)"
    tokens = list(tokens_of(bracketed))
    complete = tokens[-1].start[0] == bracketed.count("\n") + 1
    return tokens[1:-1] if complete else []


def _token_span(first: tokenize.TokenInfo, last: tokenize.TokenInfo) -> Span:
    # rows of the function's text start at its second line, tokens count from 1
    start, end = first.start, last.end
    return Span((start[0] - 2, start[1]), (end[0] - 2, end[1]), whole=False)


def _body_tokens(function: FunctionSource) -> list[tokenize.TokenInfo]:
    """Return the tokens of the body; signature and decorators run only once, at import."""
    body = function.node.body
    start = function.span(body[0], body[-1], whole=True).start
    return [t for t in tokens_of(function.text) if (t.start[0] - 2, t.start[1]) >= start]


def _essential(tokens: list[tokenize.TokenInfo]) -> list[tokenize.TokenInfo]:
    """Drop commas before a closing bracket."""
    return [
        token
        for token, following in zip_longest(tokens, tokens[1:])
        if not (token.string == "," and following and following.string in _CLOSING)
    ]


def _key(token: tokenize.TokenInfo) -> tuple[int, str]:
    if token.type == tokenize.STRING:  # by value, so that quotes do not matter
        return token.type, ast.dump(ast.parse(token.string, mode="eval"))
    if token.type == getattr(tokenize, "FSTRING_START", -1):
        return token.type, token.string.rstrip("'\"").lower()
    if token.type == getattr(tokenize, "FSTRING_END", -1):
        return token.type, ""
    return token.type, token.string


def _is_bounded(tokens: list[tokenize.TokenInfo], first: int, last: int) -> bool:
    before = tokens[first - 1] if first else None
    after = tokens[last + 1] if last + 1 < len(tokens) else None
    starts = (
        before is None or before.end[0] < tokens[first].start[0] or before.string in _MAY_PRECEDE
    )
    ends = (
        after is None
        or after.start[0] > tokens[last].end[0]
        or tokens[last].string == ":"
        or after.string in _MAY_FOLLOW
    )
    return starts and ends


def _blocks(function: FunctionSource) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function.node):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block and not _is_elif(function, node, block[0]):
                yield block


def _is_elif(function: FunctionSource, parent: ast.AST, statement: ast.stmt) -> bool:
    # In the syntax tree an elif is an if inside an else; its text cannot stand alone.
    if not (isinstance(parent, ast.If) and isinstance(statement, ast.If)):
        return False
    row, column = function.span(statement, statement, whole=True).start
    return function.lines[row].startswith("elif", column)


def _all_statements(function: FunctionSource) -> list[ast.stmt]:
    return list(chain.from_iterable(_blocks(function)))


def _inside(statement: ast.stmt) -> Iterator[ast.stmt]:
    return (
        node for node in ast.walk(statement) if isinstance(node, ast.stmt) and node is not statement
    )


def _mentioned(statement: ast.stmt) -> set[str]:
    return {name for node in ast.walk(statement) if (name := _name(node))}


def _assigned(statement: ast.stmt) -> set[str]:
    stored = (n for n in ast.walk(statement) if isinstance(getattr(n, "ctx", None), ast.Store))
    return {name for node in stored if (name := _name(node))}


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Subscript):  # x.y[i] = ... stores to y
        return _name(node.value)
    return next(
        (
            value
            for field in ("id", "attr", "arg")
            if isinstance(value := getattr(node, field, None), str)
        ),
        "",
    )


def _one_line(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
