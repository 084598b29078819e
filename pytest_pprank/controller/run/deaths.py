"""Finds which rank died first, if one or all are gone. Pure: asks queries for what it must know."""

from __future__ import annotations

import signal

from pytest_pprank.controller.run.state import RunState
from pytest_pprank.controller.run.steps import AwaitEnd, EndAwaited
from pytest_pprank.protocol.messages import GroupEnded
from pytest_pprank.report.verdicts import GroupDied, RankDied, describe_exit

_EXIT_CODE_SECONDS = 1.0
_REAP_SECONDS = 5.0
_OUR_SIGNALS = (-signal.SIGTERM, -signal.SIGKILL)


class Deaths:
    """Finds the rank that died first, and how it died."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def begin(self) -> AwaitEnd:
        """Ask how the group ended: an exit code says more than a closed connection."""
        return AwaitEnd(0 if self._self_reported() else _EXIT_CODE_SECONDS)

    def verdict(self, seen: EndAwaited) -> RankDied | GroupDied | AwaitEnd:
        """Return who died and how, or ask for the end of peers that elastic cannot end soon."""
        ended, reported = seen.ended, self._self_reported()
        if ended is None and not reported and not seen.forced:
            return AwaitEnd(_REAP_SECONDS, forced=True)
        if ended is not None and ended.error:
            return GroupDied(error=ended.error)
        state = self._state
        culprit = (reported or list(state.dead) or list(state.inside()) or [0])[0]
        if ended is not None and not reported:
            culprit = _first_dead(culprit, ended, by_itself=not seen.forced)
        code = None if ended is None else ended.exits.get(culprit)
        how = state.dead.get(culprit) or describe_exit(code)
        return RankDied(rank=culprit, place=state.place(culprit), how=how)

    def _self_reported(self) -> list[int]:
        """Return the ranks that have reported their own error."""
        return [rank for rank, words in self._state.dead.items() if words]


def _first_dead(heard: int, ended: GroupEnded, *, by_itself: bool) -> int:
    """Return the rank that died first; `heard` is the rank whose connection closed first.

    A child of a dead rank may keep its connection open, and elastic soon ends the peers. So the
    rank that elastic saw fail counts, unless elastic was told to end the group. In that case a
    death without a signal of ours counts before one by a signal that the launcher sends.
    """
    if by_itself and ended.first >= 0:
        return ended.first
    if ended.exits.get(heard) not in _OUR_SIGNALS:
        return heard
    others = [rank for rank, code in ended.exits.items() if code not in _OUR_SIGNALS]
    return others[0] if len(others) == 1 else heard
