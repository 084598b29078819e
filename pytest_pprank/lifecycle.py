"""The common lifecycle of checks, which watch a test on a rank, and faults, which disturb it.

This module imports neither torch nor SGLang.
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
_MAX_FINDINGS = 8
"""Maximum number of different findings of one check in one test on one rank.

More would say nothing new.
"""


class Lifecycle:
    """The lifecycle of one check or fault in one test on one rank; each method may be left out.

    An exception in a method fails the test as a finding of this check or fault, and never reaches
    SGLang. After that no method is called any more, but the callbacks given to `Context.at_end`
    are.
    """

    def begin(self) -> None:
        """Called when the test begins: for checks before its fixtures, for faults with its call."""

    def loop(self, engine: Engine) -> None:
        """Called when `engine` or `disagg` was made for this test; its event loops come later."""

    def iteration(self, number: int) -> None:
        """Called when an iteration of this stage's event loop begins, in the loop's thread.

        `number`: the iterations since the loop was entered that are over.
        """

    def quiescent(self, left: Quiescent) -> None:
        """Called after the event loops have ended without error: nothing may be held now."""

    def end(self) -> None:
        """Called after the test and the teardown of its fixtures, if it has not failed here."""

    def evidence(self) -> object:
        """Return what the row's `compare` needs of this rank, as JSON data; None for nothing."""
        return None


class Cleanups:
    """A stack of callbacks that undo changes, called last in, first out."""

    def __init__(self) -> None:
        self._cleanups: list[Callable[[], object]] = []

    def at_end(self, cleanup: Callable[[], object]) -> None:
        """Register `cleanup()` to be called at the end (in a Context: of the test)."""
        self._cleanups.append(cleanup)

    def close(self) -> None:
        """Call all registered callbacks, the last one first."""
        while self._cleanups:
            self._undo(self._cleanups.pop())

    def _undo(self, cleanup: Callable[[], object]) -> None:
        cleanup()


class Context(Cleanups):
    """What a check or fault is given for one test on this rank.

    `pprank`: this rank. `send` sends a new finding to the controller.
    """

    what: ClassVar[str] = ""
    """The word for it in messages."""
    cure: ClassVar[str] = ""
    """The hint for the user if the check or fault itself fails; ``{}`` is its name."""

    def __init__(self, name: str, pprank: Pprank, send: Callable[[Finding], None]) -> None:
        super().__init__()
        self.name = name
        self.pprank = pprank
        self.off = ""
        """Why it is off: what it needs and SGLang lacks. Empty while it is on."""
        self.counts: dict[str, int] = {}
        """How often each finding was made, by its key."""
        self._send = send
        self._broken = False

    def announce(self, finding: Finding) -> None:
        """Send a finding; one that differs from an earlier one only in numbers is only counted."""
        times = self.counts.get(finding.key, 0)
        if times or len(self.counts) < _MAX_FINDINGS:
            self.counts[finding.key] = times + 1
        if times == 0 and finding.key in self.counts:
            self._send(finding)

    def listen(self, seam: str, listener: Callable[[Any], object]) -> None:
        """Call `listener(event)` at each call of a hook point (sglang.events), to the test's end.

        The hook point must be one that the row names. A hook point that this rank's role never
        calls is ignored. One that SGLang lacks raises SeamMissing, which `guard` handles.
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
        """Raise ValueError for a hook point that the row does not name.

        Reports of what is off with an SGLang are derived from the row.
        """
        if seam not in self._declared():
            raise ValueError(f"{seam!r} is not among the hooks of {self.what} {self.name!r}")

    def _declared(self) -> Sequence[str]:
        """Return the hook points that the row names."""
        raise NotImplementedError

    def _note(self, call: HookCall) -> None:
        self.guard(lambda: call.event)

    def guard(self, function: Callable[..., _T], *args: object) -> _T | None:
        """Call `function` and return its result; turn an exception into a finding and return None.

        SGLang must not see the exception, and the user must. After an exception `guard` calls
        nothing any more. If SGLang lacks what is needed (SeamMissing), there is no finding: the
        check is off from then on, and `off` says why.
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

    def _undo(self, cleanup: Callable[[], object]) -> None:
        self._try(cleanup)  # also after a failure: what it has changed must not outlive the test
