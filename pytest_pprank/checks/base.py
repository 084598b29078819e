"""What a sanitizer is on a rank, and what it is given: no torch, no SGLang here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import ClassVar

from pytest_pprank.checks import row_of
from pytest_pprank.lifecycle import Context, Lifecycle
from pytest_pprank.oplog.file import Site
from pytest_pprank.protocol.findings import Finding


class Watch(Context):
    """A sanitizer's view of the running test."""

    what = "sanitizer"
    cure = "leave it out for now with a --pprank-sanitize list without it"

    def report(self, text: str, stack: Sequence[Site] = (), cure: str = "") -> None:
        """Report a finding, which fails the test: what was found (the first line tells), where
        (see `stack`), and what usually causes it. One that differs from an earlier one only in
        numbers is counted.
        """
        self.announce(Finding(self.name, text, tuple(map(str, stack)), cure))

    def stack(self, depth: int = 6) -> tuple[Site, ...]:
        """Return where SGLang or the test is now, innermost first: what led to the event that is
        being told, without this plugin, torch and the check itself.
        """
        from pytest_pprank.sglang.events.sites import call_sites

        return call_sites(depth, _below_the_check())

    def _declared(self) -> Sequence[str]:
        return row_of(self.name).hooks


def _below_the_check() -> FrameType | None:
    """Return the frame that called the check; None where nothing guards it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not Context.guard.__code__:
        frame = frame.f_back
    return frame


class Sanitizer(Lifecycle):
    """Base of all. One object on each rank for each test; every method may be left as it is.

    `watch`: what it has of the test, and reports to.
    """

    name: ClassVar[str] = ""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
