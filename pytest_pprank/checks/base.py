"""What a sanitizer is on a rank, and what it is given: no torch, no SGLang here."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_pprank.errors import SeamMissing
from pytest_pprank.oplog.file import Site
from pytest_pprank.protocol.findings import Finding
from pytest_pprank.sglang.events.places import passes

if TYPE_CHECKING:
    from pytest_pprank.rank.handle import Pprank
    from pytest_pprank.sglang.events.hook_points import Passage
    from pytest_pprank.sglang.events.types import Quiescent

_MOST = 8
"""Different findings of one sanitizer in one test on one rank; more would say nothing new."""


class Watch:
    """A sanitizer's view of the running test. `send` tells the controller of a new finding."""

    def __init__(self, name: str, pprank: Pprank, send: Callable[[Finding], None]) -> None:
        self.pprank = pprank
        self.off = ""
        """Why this check is off: what it needs of SGLang and does not find."""
        self.counts: dict[str, int] = {}
        """How often each finding was made, by its key."""
        self._name = name
        self._send = send
        self._endings: list[Callable[[], None]] = []
        self._broken = False

    def report(self, text: str, stack: tuple[Site, ...] = (), cure: str = "") -> None:
        """Report a finding; one that differs from an earlier one only in numbers is counted."""
        finding = Finding(self._name, text, tuple(map(str, stack)), cure)
        times = self.counts.get(finding.key, 0)
        if times or len(self.counts) < _MOST:
            self.counts[finding.key] = times + 1
        if times == 0 and finding.key in self.counts:
            self._send(finding)

    def listen(self, seam: str, listener: Callable[[Any], object]) -> None:
        """Call `listener(event)` at each passing of a seam (sglang.events), to the test's end.

        The seam must be one of those that the check's row names. One that this rank's role never
        passes is not asked for; one that SGLang lacks raises SeamMissing, which `guard` takes.
        """
        self._check_declared(seam)
        if not passes(seam, self.pprank.role):
            return
        from pytest_pprank.sglang.events import hooks  # noqa: F401  (the table registers itself)
        from pytest_pprank.sglang.events.hook_points import taps

        def guarded(passage: Passage) -> None:
            self.guard(lambda: listener(passage.event))

        for needed in taps.seam(seam).needs:
            self._check_declared(needed)
            self.at_end(taps.listen(needed, self._note))
        self.at_end(taps.listen(seam, guarded))

    def _check_declared(self, seam: str) -> None:
        """Refuse a seam that the row does not name: what is off without it could not be told."""
        from pytest_pprank.checks import row_of

        if seam not in row_of(self._name).hooks:
            raise ValueError(f"{seam!r} is not among the hooks of sanitizer {self._name!r}")

    def _note(self, passage: Passage) -> None:
        self.guard(lambda: passage.event)

    def at_end(self, ending: Callable[[], None]) -> None:
        """Call `ending()` when the test is over, the last one first."""
        self._endings.append(ending)

    def guard(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function`; what it raises is a finding: SGLang must not see it, the user must.

        Only where SGLang lacks what the check needs, it is off from there on, and says why.
        """
        if self._broken:
            return
        try:
            function(*args)
        except SeamMissing as lacking:
            self._broken, self.off = True, str(lacking)
        except Exception as error:
            self._broken = True
            lines = traceback.format_exc().rstrip()
            text = f"the sanitizer itself failed ({type(error).__name__}: {error})\n{lines}"
            self.report(text, cure="leave it out for now with a --pprank-sanitize list without it")

    def close(self) -> None:
        """The test is over."""
        while self._endings:
            self._endings.pop()()


class Sanitizer:
    """Base of all. One object on each rank for each test; every method may be left as it is."""

    name: ClassVar[str] = ""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def begin(self) -> None:
        """A test begins; its fixtures are not set up yet."""

    def quiescent(self, left: Quiescent) -> None:
        """The event loops have been left in good order; nothing may be held now."""

    def end(self) -> None:
        """The test is over on this rank, its fixtures torn down; it has not failed here."""

    def evidence(self) -> Any:
        """Return what `compare` needs of this rank, as JSON can have it; None for nothing."""
        return None
