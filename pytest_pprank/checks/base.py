"""The base of sanitizers on a rank, and what they are given; imports neither torch nor SGLang."""

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
        """Report a finding, which fails the test.

        `text`: what was found; its first line is the summary. `stack`: where (see `Watch.stack`).
        `cure`: the usual cause. A finding that differs from an earlier one only in numbers is only
        counted.
        """
        self.announce(Finding(self.name, text, tuple(map(str, stack)), cure))

    def stack(self, depth: int = 6) -> tuple[Site, ...]:
        """Return the lines of SGLang or the test that led to the current event, innermost first.

        Frames of this plugin, of torch and of the check itself are left out.
        """
        from pytest_pprank.sglang.events.sites import call_sites

        return call_sites(depth, _below_the_check())

    def _declared(self) -> Sequence[str]:
        return row_of(self.name).hooks


def _below_the_check() -> FrameType | None:
    """Return the frame that called the check; None if it was not called by `guard`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not Context.guard.__code__:
        frame = frame.f_back
    return frame


class Sanitizer(Lifecycle):
    """Base of all sanitizers. Each rank has one object per test; each method may be left out.

    `watch`: its context in the test, by which it reports findings.
    """

    name: ClassVar[str] = ""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
