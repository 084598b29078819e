"""Makes texts of tests and ranks fit for a page: they may contain anything."""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def plain(text: str) -> str:
    """Return a text without escape sequences of terminals.

    Other characters that cannot be shown become U+FFFD.
    """
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return _UNSHOWABLE.sub("\ufffd", text)
