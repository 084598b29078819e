"""Findings of sanitizers. Each is sent when it is made, so that it survives a crash of the rank."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One violation that a sanitizer has found.

    `text`: what was found, and where. `stack`: lines of SGLang's or the user's code, innermost
    first. `cure`: the usual cause, or how to fix it.
    """

    sanitizer: str
    text: str
    stack: tuple[str, ...] = ()
    cure: str = ""

    @property
    def key(self) -> str:
        """What equal findings have in common: the text without numbers, and the innermost line.

        Request ids, tokens and ranks count as numbers.
        """
        place = self.stack[0] if self.stack else ""
        return re.sub(r"\d+", "N", f"{self.sanitizer}: {self.text.partition(chr(10))[0]}") + place


def own_failure(what: str, name: str, error: BaseException, cure: str) -> Finding:
    """Return a finding for an exception `error` in a check or fault (`what`) itself."""
    lines = "".join(traceback.format_exception(error)).rstrip()
    text = f"the {what} itself failed ({type(error).__name__}: {error})\n{lines}"
    return Finding(name, text, cure=cure)
