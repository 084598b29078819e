"""One life for what watches a test on a rank (checks) and what disturbs it (faults).

Neither torch nor SGLang is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pytest_pprank.errors import SeamMissing
from pytest_pprank.protocol.findings import Finding, own_failure
from pytest_pprank.sglang.events.places import passes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.driver.engine import Engine
    from pytest_pprank.sglang.events.hook_points import HookCall
    from pytest_pprank.sglang.events.types import Quiescent

_T = TypeVar("_T")
_MOST = 8
"""Different findings of one check in one test on one rank; more would say nothing new."""


class Life:
    """The life of one check or fault in one test on one rank; every method may be left as it is.

    What a method raises fails the test in the name of this check or fault, and is never seen by
    SGLang. It is not called any more then, but what was given to `Means.at_end` is.
    """

    def begin(self) -> None:
        """The test begins: for checks before its fixtures, for faults with its call."""

    def loop(self, engine: Engine) -> None:
        """An `engine` or `disagg` was made for this test; its loops have not been entered yet."""

    def iteration(self, number: int) -> None:
        """An iteration of this stage's event loop begins, in the loop's thread. `number`: how many
        are over since the loop was entered.
        """

    def quiescent(self, left: Quiescent) -> None:
        """The event loops have been left in good order; nothing may be held now."""

    def end(self) -> None:
        """The test is over on this rank, its fixtures torn down; it has not failed here."""

    def evidence(self) -> object:
        """Return what the row's `compare` needs of this rank, as JSON can have it; None for
        nothing.
        """
        return None


class Endings:
    """What is to be undone, the last one first."""

    def __init__(self) -> None:
        self._endings: list[Callable[[], object]] = []

    def at_end(self, ending: Callable[[], object]) -> None:
        """Call `ending()` when it is over (for a check or fault: the test), the last one first."""
        self._endings.append(ending)

    def close(self) -> None:
        """It is over."""
        while self._endings:
            self._undo(self._endings.pop())

    def _undo(self, ending: Callable[[], object]) -> None:
        ending()


class Means(Endings):
    """What a check or fault is given for one test on this rank.

    `pprank`: this rank. `send` tells the controller of a new finding.
    """

    what: ClassVar[str] = ""
    """What it is called in messages."""
    cure: ClassVar[str] = ""
    """What to do when it fails itself; ``{}`` is its name."""

    def __init__(self, name: str, pprank: Pprank, send: Callable[[Finding], None]) -> None:
        super().__init__()
        self.name = name
        self.pprank = pprank
        self.off = ""
        """Why it is off: what it needs of SGLang and does not find."""
        self.counts: dict[str, int] = {}
        """How often each finding was made, by its key."""
        self._send = send
        self._broken = False

    def announce(self, finding: Finding) -> None:
        """Send a finding; one that differs from an earlier one only in numbers is counted."""
        times = self.counts.get(finding.key, 0)
        if times or len(self.counts) < _MOST:
            self.counts[finding.key] = times + 1
        if times == 0 and finding.key in self.counts:
            self._send(finding)

    def listen(self, seam: str, listener: Callable[[Any], object]) -> None:
        """Call `listener(event)` at each passing of a seam (sglang.events), to the test's end.

        The seam must be one of those that the row names. One that this rank's role never passes is
        not asked for; one that SGLang lacks raises SeamMissing, which `guard` takes.
        """
        self._check_declared(seam)
        if not passes(seam, self.pprank.role):
            return
        from pytest_pprank.sglang.events import hooks  # noqa: F401  (the table registers itself)
        from pytest_pprank.sglang.events.hook_points import hook_points

        def guarded(call: HookCall) -> None:
            self.guard(lambda: listener(call.event))

        for needed in hook_points.point(seam).needs:
            self._check_declared(needed)
            self.at_end(hook_points.listen(needed, self._note))
        self.at_end(hook_points.listen(seam, guarded))

    def _check_declared(self, seam: str) -> None:
        """Refuse a seam that the row does not name: what is off without it could not be told."""
        if seam not in self._declared():
            raise ValueError(f"{seam!r} is not among the hooks of {self.what} {self.name!r}")

    def _declared(self) -> Sequence[str]:
        """Return the hook points that the row names."""
        raise NotImplementedError

    def _note(self, call: HookCall) -> None:
        self.guard(lambda: call.event)

    def guard(self, function: Callable[..., _T], *args: object) -> _T | None:
        """Call `function` and return what it returns; what it raises is a finding, and None comes
        back: SGLang must not see it, the user must. After that nothing is called any more.

        Only where SGLang lacks what is needed, it is off from there on, and says why.
        """
        return None if self._broken else self._try(function, *args)

    def _try(self, function: Callable[..., _T], *args: object) -> _T | None:
        try:
            return function(*args)
        except SeamMissing as lacking:
            self._lacks(lacking)
        except Exception as error:
            self._broken = True
            self.announce(own_failure(self.what, self.name, error, self.cure.format(self.name)))
        return None

    def _lacks(self, lacking: SeamMissing) -> None:
        self._broken, self.off = True, str(lacking)

    def _undo(self, ending: Callable[[], object]) -> None:
        self._try(ending)  # also of one that has failed: others would go on with what it has done
