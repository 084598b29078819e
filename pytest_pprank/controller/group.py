"""A worker group as the controller sees it: start it, run tests on it, see it gone."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_pprank.controller.meetings import Meetings
from pytest_pprank.controller.outcome import TestOutcome
from pytest_pprank.controller.test_run import TestRun
from pytest_pprank.errors import GroupError
from pytest_pprank.launch.client import LauncherClient
from pytest_pprank.wire.channel import Channel, ChannelClosed, ready_channels
from pytest_pprank.wire.messages import (
    Exchange,
    Exchanged,
    GroupEnded,
    ItemKey,
    KillGroup,
    Message,
    RankBroken,
    Ready,
    RunTest,
    Shutdown,
    StartGroup,
    WarningSeen,
)

_TICK_SECONDS = 0.05
_START_SECONDS = 300.0
_LEAVE_SECONDS = 10.0
_REAP_SECONDS = 2.0


@dataclass
class RankPeer:
    """The controller's knowledge of one rank."""

    rank: int
    pid: int
    channel: Channel
    missing: dict[ItemKey, str]
    alive: bool = True


class WorkerGroup:
    """The ranks of one topology. All methods are for the controller's main thread."""

    def __init__(
        self,
        launcher: LauncherClient,
        order: StartGroup,
        on_warning: Callable[[WarningSeen], None],
    ) -> None:
        self.name = order.group
        self.world_size = order.nproc
        self.workdir = Path(order.workdir)
        self.ranks: dict[int, RankPeer] = {}  # in rank order, once the group is up
        self.on_warning = on_warning
        self._launcher = launcher
        self._order = order
        self._ended: GroupEnded | None = None
        self._tests = 0

    def start(self) -> None:
        """Bring the group up; raises GroupError with each rank's own words when that fails."""
        deadline = time.monotonic() + _START_SECONDS
        self.workdir.mkdir(mode=0o700)
        self.tell_launcher(self._order)
        try:
            self._admit(deadline)
            self._wait_ready(deadline)
        except GroupError:
            self.kill()
            raise

    def _admit(self, deadline: float) -> None:
        while len(self.ranks) < self.world_size:
            arrival = self._launcher.next_rank(_TICK_SECONDS)
            if arrival is not None and arrival[0].group == self.name:
                hello, channel = arrival
                self.ranks[hello.rank] = RankPeer(hello.rank, hello.pid, channel, {})
            self._check_start(deadline)
        self.ranks = dict(sorted(self.ranks.items()))

    def _wait_ready(self, deadline: float) -> None:
        ready: set[int] = set()
        meetings = Meetings(self.world_size, self.answer)
        while len(ready) < self.world_size:
            for peer, message in self.messages(_TICK_SECONDS):
                if isinstance(message, Ready):
                    peer.missing = message.missing
                    ready.add(peer.rank)
                elif isinstance(message, Exchange):
                    meetings.arrive(peer.rank, message)
                elif isinstance(message, RankBroken):
                    raise GroupError(f"rank {peer.rank} could not start: {message.text}")
                elif message is None:
                    meetings.leave(peer.rank, "died")
                    self.wait_ended(_REAP_SECONDS)  # with its exit code, if that was not 0
                    self._check_start(deadline)
                    raise GroupError(f"rank {peer.rank} left while starting, with exit code 0")
            self._check_start(deadline)

    def _check_start(self, deadline: float) -> None:
        if self._ended is None and not self._launcher.alive:
            raise GroupError(f"the launcher process died:\n{self._launcher.log_tail()}")
        if self.ended is not None:
            raise GroupError(f"the worker group ended while starting:\n{self._why_ended()}")
        if time.monotonic() > deadline:
            late = sorted(set(range(self.world_size)) - set(self.ranks))
            raise GroupError(f"ranks {late} did not connect within {_START_SECONDS:.0f} s")

    def _why_ended(self) -> str:
        assert self._ended is not None
        lines = [f"rank {r}: exit code {code}" for r, code in sorted(self._ended.exits.items())]
        logs = [self.stderr_tail(rank) for rank in self._ended.exits]
        return "\n".join([*lines, *logs, self._ended.error, self._launcher.log_tail()])

    def run_test(
        self, key: ItemKey, following: ItemKey | None, timeout: float, grace: float
    ) -> TestOutcome:
        """Run one test on all ranks; one that is spoiled or unsettled then must be replaced."""
        self._tests += 1
        for peer in self.ranks.values():
            self.send(peer, RunTest(key, following, self._tests))
        return TestRun(self, self._tests, timeout, grace).wait()

    def messages(self, timeout: float) -> list[tuple[RankPeer, Message | None]]:
        """Return what ranks have said within `timeout` seconds; None from a rank that is gone."""
        by_channel = {peer.channel: peer for peer in self.ranks.values() if peer.alive}
        if not by_channel:
            time.sleep(min(timeout, _TICK_SECONDS))  # nobody left to wait for
        heard: list[tuple[RankPeer, Message | None]] = []
        for channel in ready_channels(list(by_channel), timeout):
            peer = by_channel[channel]
            try:
                message = channel.receive()
            except ChannelClosed:
                peer.alive = False
                heard.append((peer, None))
                continue
            if isinstance(message, WarningSeen):
                self.on_warning(message)
            else:
                heard.append((peer, message))
        return heard

    def send(self, peer: RankPeer, message: Message) -> None:
        """Send to a rank; one that is gone shows itself at the next read."""
        with suppress(ChannelClosed):
            peer.channel.send(message)

    def answer(self, rank: int, message: Exchanged) -> None:
        """Answer a rank's meeting."""
        self.send(self.ranks[rank], message)

    def tell_launcher(self, message: Message) -> None:
        """Send to the launcher; raises GroupError if it is gone."""
        channel = self._launcher.channel
        try:
            if channel is not None:
                channel.send(message)
        except ChannelClosed as error:
            raise GroupError(f"the launcher process died:\n{self._launcher.log_tail()}") from error

    @property
    def ended(self) -> GroupEnded | None:
        """How the group ended; None while the launcher still runs it."""
        channel = self._launcher.channel
        while self._ended is None and channel is not None and channel.connection.poll(0):
            try:
                message = channel.receive()
            except ChannelClosed:
                message = GroupEnded(self.name, {}, "the launcher process died")
            if isinstance(message, GroupEnded) and message.group == self.name:
                self._ended = message
        return self._ended

    def wait_ended(self, seconds: float) -> GroupEnded | None:
        """Wait up to `seconds` for the group to be gone."""
        deadline = time.monotonic() + seconds
        while self.ended is None and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS / 5)
        return self.ended

    def stderr_tail(self, rank: int, lines: int = 5) -> str:
        """Return the last lines a rank has written to its stderr outside pytest's capture.

        Where faulthandler has written there, all that it wrote.
        """
        for log in sorted(self.workdir.glob(f"logs/*/attempt_*/{rank}/stderr.log")):
            text = log.read_text(errors="replace")
            dump = text.rfind("Fatal Python error")
            return text[dump:] if dump >= 0 else "\n".join(text.splitlines()[-lines:])
        return ""

    def close(self) -> None:
        """Let every rank tear down its session and leave; kills those that do not."""
        for peer in self.ranks.values():
            self.send(peer, Shutdown())
        # what is torn down only now may still want to meet
        meetings = Meetings(self.world_size, self.answer)
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self.ended is None and time.monotonic() < deadline:
            for peer, message in self.messages(_TICK_SECONDS):
                if isinstance(message, Exchange):
                    meetings.arrive(peer.rank, message)
                elif message is None:
                    meetings.leave(peer.rank, "left")
        if self.ended is None:
            self.kill()
        self._disconnect()

    def kill(self) -> None:
        """End every process of the group at once; raises GroupError if even that fails."""
        if self.ended is None:
            self.tell_launcher(KillGroup(self.name))
            if self.wait_ended(_LEAVE_SECONDS) is None:
                raise GroupError(f"worker group {self.name} survived SIGKILL")
        self._disconnect()

    def _disconnect(self) -> None:
        for peer in self.ranks.values():
            peer.channel.close()
            peer.alive = False
            # each rank led a process group of its own; what is left of it are its children
            with suppress(ProcessLookupError):
                os.killpg(peer.pid, signal.SIGKILL)
        shutil.rmtree(self.workdir, ignore_errors=True)
