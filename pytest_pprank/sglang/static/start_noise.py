"""Messages that the start of SGLang's parts prints in every run, and that mean nothing."""

from __future__ import annotations

import re

_HARMLESS = re.compile(
    "|".join(
        (
            # glog, in Mooncake, before SGLang has begun its log
            r"WARNING: Logging before InitGoogleLogging\(\) is written to STDERR",
            # Mooncake looks for a peer's segment in its own process first
            r"[IWE]\d{4} [\d:.]+ +\d+ transfer_metadata\.cpp:\d+\] "
            r"Local segment descriptor not found",
        )
    )
)


def without_noise(text: str) -> str:
    """Return what was printed without such lines."""
    if not _HARMLESS.search(text):
        return text
    return "".join(it for it in text.splitlines(True) if not _HARMLESS.fullmatch(it.rstrip()))
