"""Reports what the simulated device finds as findings of a sanitizer."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pytest_pprank.checks.base import Watch
from pytest_pprank.frames import is_caller_code
from pytest_pprank.oplog.file import Site

if TYPE_CHECKING:
    from pytest_pprank.devices.sim.reports import Kind, Race

SHOWN = 10
"""Maximum number of frames in a stack."""


def report_order(watch: Watch, kinds: Collection[Kind]) -> None:
    """Report races of these kinds as soon as the device finds them, to the end of the test.

    Accesses of the test are not compared with accesses before it.
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
            # in the first line, so that the place takes part in the key of the finding
            head += f" ({earlier[0]})" if earlier else ""
            lines = [head, *(f"  {site}" for site in earlier)]
            watch.report("\n".join(lines), later, race.cure)

    wait_for_device()
    watch.at_end(reports.listen(lambda race: watch.guard(take, race)))


def sites(frames: Collection[tuple[str, int, str]]) -> tuple[Site, ...]:
    """Return the frames to show, the innermost first."""
    return tuple(Site(*frame) for frame in frames if is_caller_code(frame[0]))[:SHOWN]
