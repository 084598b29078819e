"""Errors that a user can act on; any other exception is a bug of this plugin."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SEE_DOCTOR = "(what can run here: python -m pytest_pprank doctor)"
"""The end of messages about what is missing or broken in an environment."""


class PprankError(Exception):
    """Base of all errors that this plugin raises on purpose."""


class UsageError(PprankError):
    """An option, marker or argument that cannot be used.

    On the controller it ends the run with exit code 4 (pytest's usage error); on a rank it fails
    the test. The message names the given value and the allowed ones.
    """


class TooFewGpus(UsageError):
    """Device cuda, and fewer GPUs than a test needs; `visible`: how many there are."""

    def __init__(self, message: str, visible: int) -> None:
        super().__init__(message)
        self.visible = visible


class DoesNotFit(UsageError):
    """A revert whose target or match occurs not at all, or several times, in the installed SGLang.

    The revert itself is valid: it was made for another version.
    """


class SeamMissing(PprankError):
    """The installed SGLang (or torch) lacks something this plugin needs.

    The message names the installed version and the missing attribute. It is an error and not a
    skip, which could be mistaken for a pass.
    """


class GroupError(PprankError):
    """A worker group could not be started, or ended before its tests did."""


class StartFailed(PprankError):
    """SGLang refuses the server args of a test, or its Scheduler does not start with them.

    The message has SGLang's own message, the line of SGLang's code that raised, and the test's
    marker.
    """


class PeerError(PprankError):
    """A rank's wait in a meeting was ended because a peer can no longer come to it."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for a near miss, else an empty string."""
    close = get_close_matches(word, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
