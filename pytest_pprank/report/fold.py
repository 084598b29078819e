"""Folds equal lines in what several ranks have printed or logged.

Sections that differ in a few lines are merged into one, with a margin that names the ranks::

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
"""Title and text of each section, in order, with its ranks."""

_FOLDED = "Captured "
"""How titles of sections to fold begin; sections of other plugins are not changed."""
_FEWEST_SHARED = 3
_LONGEST = 0.75
"""The largest fraction of lines that may be left: texts with little in common stay separate."""
_MOST_LINES = 5_000
"""Of all ranks together; more would take half a second, and are not folded."""
_PREFIX = re.compile(r"\[(\d{4}-\d\d-\d\d [\d:.,]+)(?: [A-Z]+\d+)*\] ")
"""The prefix of SGLang's log lines; time and rank differ even if nothing else does."""
_COLOUR, _COLOUR_OFF = "\x1b[", "\x1b[0m"


@dataclass(frozen=True)
class _Line:
    text: str
    key: str
    """What equal lines have in common."""
    ranks: frozenset[int]

    def of_both(self, other: _Line) -> _Line:
        """Merge equal lines of two ranks; if the prefixes differ, keep the first one's time."""
        text = self.text
        if text != other.text:
            text = _PREFIX.sub(r"[\1] ", text, count=1)
        return _Line(text, self.key, self.ranks | other.ranks)

    def with_margin(self, everybody: frozenset[int], width: int) -> str:
        """Return the text after its ranks; colours end with the line."""
        off = _COLOUR_OFF if _COLOUR in self.text else ""
        text = f" {self.text}{off}" if self.text else ""
        return f"{self.margin(everybody):>{width}} |{text}"

    def margin(self, everybody: frozenset[int]) -> str:
        """Return the ranks of the line."""
        return "all" if self.ranks == everybody else ",".join(map(str, sorted(self.ranks)))


def fold_equal_lines(sections: Sections) -> Iterator[tuple[str, str, Collection[int]]]:
    """Yield title, text and ranks of each section, merged if that is shorter and readable.

    A merged section is at the place of the first one with its title.
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
    plain = not any("\r" in text for text in texts)  # \r would overwrite the margin
    return title.startswith(_FOLDED) and len(texts) > 1 and once and plain


def _merged(texts: Mapping[str, Collection[int]]) -> str:
    """Return the texts merged into one with a margin; empty if merging does not pay."""
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
    """Merge two texts, keeping the order of lines in each."""
    matcher = SequenceMatcher(None, [line.key for line in one], [line.key for line in other])
    merged: list[_Line] = []
    for what, begin, end, other_begin, other_end in matcher.get_opcodes():
        ours, theirs = one[begin:end], other[other_begin:other_end]
        if what == "equal":
            merged += map(_Line.of_both, ours, theirs)
        else:
            merged += [*ours, *theirs]
    return merged
