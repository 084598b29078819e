"""What the simulated device finds, told as findings of a sanitizer."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pytest_pprank.checks.base import Watch
from pytest_pprank.frames import matters
from pytest_pprank.oplog.file import Site

if TYPE_CHECKING:
    from pytest_pprank.devices.sim.reports import Kind, Race

SHOWN = 10
"""Frames of a stack that are shown."""


def report_order(watch: Watch, kinds: Collection[Kind]) -> None:
    """Report what the device finds of these kinds, the moment it is found, to the test's end.

    Nothing that the test does is compared with what came before it.
    """
    from pytest_pprank.devices.sim.reports import reports
    from pytest_pprank.devices.sim.untracked import wait_for_device

    def take(race: Race) -> None:
        if race.kind in kinds:
            first, second = race.first, race.second
            earlier, later = sites(first.frames), sites(second.frames)
            head = (
                f"{race.kind.value}: {race.tensor}: {second.what}, {second.where}; nothing "
                f"orders that after: {first.what}, {first.where}"
            )
            # its place is in the first line: it is a part of what makes two findings differ
            head += f" ({earlier[0]})" if earlier else ""
            lines = [head, *(f"  {site}" for site in earlier)]
            watch.report("\n".join(lines), later, race.cure)

    wait_for_device()
    watch.at_end(reports.listen(lambda race: watch.guard(take, race)))


def sites(frames: Collection[tuple[str, int, str]]) -> tuple[Site, ...]:
    """Return the frames that are shown, the innermost first."""
    return tuple(Site(*frame) for frame in frames if matters(frame[0]))[:SHOWN]
