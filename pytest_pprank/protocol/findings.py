"""What a sanitizer has found: told the moment it is seen, so that no death can hide it."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that must not be.

    `text`: what was found, and where. `stack`: lines of SGLang's or the user's code, innermost
    first. `cure`: what usually causes it, or how to put it right.
    """

    sanitizer: str
    text: str
    stack: tuple[str, ...] = ()
    cure: str = ""

    @property
    def key(self) -> str:
        """What equal findings have in common: all but their numbers, and the line they come from.

        Request ids, tokens and ranks count as numbers.
        """
        place = self.stack[0] if self.stack else ""
        return re.sub(r"\d+", "N", f"{self.sanitizer}: {self.text.partition(chr(10))[0]}") + place


def own_failure(what: str, name: str, error: BaseException, cure: str) -> Finding:
    """Return the finding that a check (or a fault: `what`) has failed itself, with `error`."""
    lines = "".join(traceback.format_exception(error)).rstrip()
    text = f"the {what} itself failed ({type(error).__name__}: {error})\n{lines}"
    return Finding(name, text, cure=cure)
