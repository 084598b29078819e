"""The data model of a revert: plain values that are pickled and sent to the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .match import Shape, Text
from .place import Place
from .source import FunctionNode

Action = Literal["replace", "prepend", "append"]


@dataclass(frozen=True)
class Edit:
    """A change of one place in a function: what to match, and what to do with the match.

    ``replace`` with an empty text removes the match; ``prepend`` and ``append`` keep the match and
    put the text on lines of its own before or after it.
    """

    match: Text | Shape | Place
    action: Action = "replace"
    text: str = ""


@dataclass(frozen=True)
class Patch:
    """Edits of one function, each applied to the result of the previous one.

    ``targets``: dotted names of the function in different SGLang versions; the first one that the
    installed SGLang defines is edited. ``preamble``: code put at the start of the function's body.
    ``releases``: a PEP 440 specifier such as ``>=0.5.22``; the patch is skipped for other releases.
    """

    targets: tuple[str, ...]
    edits: tuple[Edit, ...]
    preamble: str = ""
    releases: str = ""


@dataclass(frozen=True)
class Applied:
    """One function that now runs reverted code in this process.

    ``lineno``: where its definition starts in ``filename``. ``already``: whether the same revert
    had been applied before, so nothing was changed.
    """

    target: str
    filename: str
    lineno: int
    already: bool = False


@dataclass(frozen=True)
class Edited:
    """A function of the installed SGLang before and after a revert."""

    target: str
    before: FunctionNode
    after: FunctionNode


@dataclass(frozen=True)
class Revert:
    """A fix of SGLang that can be reverted.

    ``versions``: the SGLang versions it is made for, shown in the error if it does not fit.
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
