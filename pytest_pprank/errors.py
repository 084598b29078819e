"""Errors that a user can act on; everything else is a bug of this plugin."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PprankError(Exception):
    """Base of all errors that this plugin raises on purpose."""


class UsageError(PprankError):
    """An option, marker or argument that cannot be used.

    Raised on the controller it ends the run with exit code 4 (pytest's usage
    error); raised on a rank it fails the test. The message names what was
    given, and what is allowed.
    """


class DoesNotFit(UsageError):
    """A revert whose target or match the installed SGLang lacks, or has several times.

    Nothing is wrong with the revert itself: it is made for another version.
    """


class SeamMissing(PprankError):
    """The installed SGLang (or torch) lacks something this plugin needs.

    The message names the installed version and the missing attribute: never a
    skip that could be mistaken for a pass.
    """


class GroupError(PprankError):
    """A worker group could not be started, or ended before its tests did."""


class StartFailed(PprankError):
    """SGLang refuses the server args of a test, or its Scheduler does not start with them.

    The message has SGLang's sentence, the line of SGLang's that raised, and the test's marker.
    """


class PeerError(PprankError):
    """A rank was released from a wait because a peer can no longer meet it."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for a near miss, else an empty string."""
    close = get_close_matches(word, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
