"""What several ranks have printed or logged, with the lines that they have in common told once.

Sections that differ in a few lines are merged into one, with a margin that says whose line it is::

    all | a line of every rank that the title names
      0 | a line of rank 0 alone
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import reduce

Sections = Mapping[tuple[str, str], Collection[int]]
"""Title and text of each section, in order, and the ranks that have it."""

_FOLDED = "Captured "
"""How titles of what is read line by line begin; sections of other plugins are theirs."""
_FEWEST_SHARED = 3
_LONGEST = 0.75
"""What is left of all lines, at most: texts with little in common are easier to read apart."""
_MOST_LINES = 5_000
"""Of all ranks together: more take half a second, and are left as they are."""
_PREFIX = re.compile(r"\[(\d{4}-\d\d-\d\d [\d:.,]+)(?: [A-Z]+\d+)*\] ")
"""Of SGLang's log lines; time and rank differ where nothing else does."""
_COLOUR, _COLOUR_OFF = "\x1b[", "\x1b[0m"


@dataclass(frozen=True)
class _Line:
    text: str
    key: str
    """What equal lines have in common."""
    ranks: frozenset[int]

    def of_both(self, other: _Line) -> _Line:
        """Return the line of two ranks; a prefix that differs keeps the time of the first."""
        text = self.text
        if text != other.text:
            text = _PREFIX.sub(r"[\1] ", text, count=1)
        return _Line(text, self.key, self.ranks | other.ranks)

    def with_margin(self, everybody: frozenset[int], width: int) -> str:
        """Return the text behind the ranks, with colours that end where the line does."""
        off = _COLOUR_OFF if _COLOUR in self.text else ""
        text = f" {self.text}{off}" if self.text else ""
        return f"{self.margin(everybody):>{width}} |{text}"

    def margin(self, everybody: frozenset[int]) -> str:
        """Return whose line it is."""
        return "all" if self.ranks == everybody else ",".join(map(str, sorted(self.ranks)))


def fold_equal_lines(sections: Sections) -> Iterator[tuple[str, str, Collection[int]]]:
    """Yield title, text and ranks of the sections, those merged that get shorter and stay readable.

    A merged one comes where the first of its title came.
    """
    by_title: dict[str, dict[str, Collection[int]]] = {}
    for (title, text), ranks in sections.items():
        by_title.setdefault(title, {})[text] = ranks
    merged = {title: _merged(texts) for title, texts in by_title.items() if _may_fold(title, texts)}
    for (title, text), ranks in sections.items():
        if not merged.get(title):
            yield title, text, ranks
        elif text == next(iter(by_title[title])):
            yield title, merged[title], sorted(set().union(*by_title[title].values()))


def _may_fold(title: str, texts: Mapping[str, Collection[int]]) -> bool:
    each = [rank for ranks in texts.values() for rank in ranks]
    once = len(each) == len(set(each))  # and no rank has two sections of this title
    plain = not any("\r" in text for text in texts)  # it would write over the margin
    return title.startswith(_FOLDED) and len(texts) > 1 and once and plain


def _merged(texts: Mapping[str, Collection[int]]) -> str:
    """Return the texts as one with a margin; empty if that is not worth it."""
    if sum(text.count("\n") for text in texts) > _MOST_LINES:
        return ""
    each = [_lines(text, frozenset(ranks)) for text, ranks in texts.items()]
    lines: Sequence[_Line] = reduce(_merge, each)
    everybody = frozenset().union(*texts.values())
    shared = sum(line.ranks == everybody and bool(line.text.strip()) for line in lines)
    if shared < _FEWEST_SHARED or len(lines) > _LONGEST * sum(map(len, each)):
        return ""
    width = max(len(line.margin(everybody)) for line in lines)
    return "".join(f"{line.with_margin(everybody, width)}\n" for line in lines)


def _lines(text: str, ranks: frozenset[int]) -> list[_Line]:
    # not splitlines, which also splits where a terminal does not
    return [_Line(line, _PREFIX.sub("[] ", line, count=1), ranks) for line in _split(text)]


def _split(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def _merge(one: Sequence[_Line], other: Sequence[_Line]) -> list[_Line]:
    """Merge two texts; the lines of each stay in their order."""
    matcher = SequenceMatcher(None, [line.key for line in one], [line.key for line in other])
    merged: list[_Line] = []
    for what, begin, end, other_begin, other_end in matcher.get_opcodes():
        ours, theirs = one[begin:end], other[other_begin:other_end]
        if what == "equal":
            merged += map(_Line.of_both, ours, theirs)
        else:
            merged += [*ours, *theirs]
    return merged
