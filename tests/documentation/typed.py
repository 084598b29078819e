"""Sessions at a prompt that a page shows: what the reader types there, on a pseudo-terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_TYPED = re.compile(r"^(\(Pdb [^\n)]*\) )(\S.*)$", re.MULTILINE)
_SECONDS = 120


def lines(shown: str) -> list[tuple[str, str]]:
    """Return the prompts in the output that a page shows, each with what is typed there."""
    return _TYPED.findall(shown)


def talk(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    said: Sequence[tuple[str, str]],
) -> str:
    """Run a command, type each line of `said` at its prompt, and return all that was shown."""
    import pexpect

    program, *arguments = words
    plain = {**environment, "TERM": "dumb"}
    child = pexpect.spawn(
        program, arguments, cwd=str(folder), env=plain, encoding="utf-8", timeout=_SECONDS
    )
    try:
        shown = ""
        for prompt, line in said:
            child.expect_exact(prompt)
            shown += child.before + child.after
            child.sendline(line)
        child.expect(pexpect.EOF)
        return str(shown + child.before).replace("\r\n", "\n")
    finally:
        child.close(force=True)
