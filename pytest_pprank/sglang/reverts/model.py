"""What a revert is: plain values that travel to the workers by pickle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .match import Shape, Text
from .source import FunctionNode

Action = Literal["replace", "prepend", "append"]


@dataclass(frozen=True)
class Edit:
    """Change one place of a function: what to find there, and what to do with it.

    ``replace`` with an empty text takes the match out; ``prepend`` and ``append``
    keep the match and put the text on lines of its own before or after it.
    """

    match: Text | Shape
    action: Action = "replace"
    text: str = ""


@dataclass(frozen=True)
class Patch:
    """Edits of one function, each seeing the result of the one before.

    ``targets`` are dotted names of the same function in different SGLang
    versions; the first that the installed SGLang defines is the one edited.
    ``preamble`` is code put at the start of the function's body. ``releases``, a PEP 440
    specifier such as ``>=0.5.22``, leaves the patch out for other releases of SGLang.
    """

    targets: tuple[str, ...]
    edits: tuple[Edit, ...]
    preamble: str = ""
    releases: str = ""


@dataclass(frozen=True)
class Applied:
    """One function that now runs reverted code in this process.

    ``lineno`` is where its definition starts in ``filename``. ``already`` tells
    that the same revert had been applied here before, so nothing was changed.
    """

    target: str
    filename: str
    lineno: int
    already: bool = False


@dataclass(frozen=True)
class Edited:
    """A function of the installed SGLang, as it is and as a revert makes it."""

    target: str
    before: FunctionNode
    after: FunctionNode


@dataclass(frozen=True)
class Revert:
    """A fix of SGLang that can be taken out again.

    ``versions`` says for which SGLang it is made, for the error where it does not fit.
    """

    id: str
    patches: tuple[Patch, ...]
    pr: int | None = None
    title: str = ""
    url: str = ""
    versions: str = ""

    def describe(self) -> str:
        """Return one line for the header and the reports."""
        text = f"{self.id}: {self.title}" if self.title else self.id
        known = self.pr is None or f"#{self.pr}" in self.title
        return text if known else f"{text} (PR {self.pr})"
