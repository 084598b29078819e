"""A worker group as the controller sees it: starts it, exchanges messages with it, ends it."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from pytest_pprank.controller.output import Listener, RankPipes
from pytest_pprank.controller.start import StartClock, StartErrors
from pytest_pprank.errors import GroupError
from pytest_pprank.launch.client import LauncherClient
from pytest_pprank.oplog.read.meetings import Meetings
from pytest_pprank.protocol.channel import Channel, ChannelClosed, pack
from pytest_pprank.protocol.group_note import GroupNote, RankNote
from pytest_pprank.protocol.messages import (
    Exchange,
    Exchanged,
    GroupEnded,
    ItemKey,
    KillGroup,
    KillRanks,
    Message,
    RankBroken,
    Ready,
    Shutdown,
    StartGroup,
    TornDown,
    WarningSeen,
)
from pytest_pprank.report.evidence import OomKillCounter, split_stderr
from pytest_pprank.report.verdicts import describe_exit
from pytest_pprank.words import plural_ranks

_TICK_SECONDS = 0.05
_START_SECONDS = 300.0
_LEAVE_SECONDS = 10.0
_REAP_SECONDS = 2.0
_EXIT_SECONDS = 2.0
"""How long a rank's process may take to end after its pytest session has ended."""
_SHOWN_LINES = 20


@dataclass
class RankPeer:
    """The controller's state of one rank."""

    rank: int
    pid: int
    channel: Channel
    watch: Channel
    missing: dict[ItemKey, str] = field(default_factory=dict)
    endpoint: str = ""
    alive: bool = True
    killed: bool = False
    """Whether its test has had it killed."""


class WorkerGroup:
    """The ranks of one topology. All methods must be called in the controller's main thread."""

    def __init__(
        self,
        launcher: LauncherClient,
        order: StartGroup,
        on_warning: Callable[[int, WarningSeen], None],
        listeners: Iterable[Listener] = (),
        names: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """`names`: what to call the ranks (`Sizes.rank_names`)."""
        self.name = order.group
        self.names = names
        self.world_size = order.nproc
        self.workdir = Path(order.workdir)
        self.ranks: dict[int, RankPeer] = {}  # in rank order, once the group is up
        self.outputs: dict[int, bytes] = {}
        """What plugins on ranks that ended normally have left (protocol.worker_data)."""
        self.oom_kills = OomKillCounter()
        self._on_warning = on_warning
        self._listeners = tuple(listeners)
        self._launcher = launcher
        self._order = order
        self._ended: GroupEnded | None = None
        self._selector = selectors.DefaultSelector()
        self.pipes: RankPipes

    def start(self, clock: StartClock | None = None) -> None:
        """Start the group. Raises GroupError with the errors of the ranks if that fails.

        `clock` measures the parts of the start, and is called with what is waited for.
        """
        clock = clock or StartClock()
        deadline = time.monotonic() + _START_SECONDS
        self.workdir.mkdir(mode=0o700)
        self.pipes = RankPipes(self.workdir, self.world_size, self._listeners)
        self._selector.register(self.pipes, selectors.EVENT_READ, self.pipes.read)
        self.send_to_launcher(self._order)
        if self._launcher.channel is not None:
            channel = self._launcher.channel
            self._selector.register(channel, selectors.EVENT_READ, self._receive_from_launcher)
        try:
            self._admit(deadline, clock.tick)
            clock.lap("ranks")
            self._wait_ready(deadline, clock.tick)
            clock.lap("collection")
        except BaseException:  # also when the user interrupts it
            self.kill()
            raise

    def _admit(self, deadline: float, tick: Callable[[str], None]) -> None:
        here: dict[tuple[int, bool], Channel] = {}
        while len(self.ranks) < self.world_size:
            tick(f"starting {self._except(self.ranks)} of group {self.name}")
            arrival = self._launcher.next_rank(_TICK_SECONDS)
            if arrival is not None and arrival[0].group == self.name:
                hello, channel = arrival
                here[hello.rank, hello.watch] = channel
                if (hello.rank, not hello.watch) in here:
                    own, watch = here[hello.rank, False], here[hello.rank, True]
                    self.ranks[hello.rank] = RankPeer(hello.rank, hello.pid, own, watch)
            self.messages(0)  # from the launcher; ranks are not registered yet
            self._check_start(deadline)
        self.ranks = dict(sorted(self.ranks.items()))
        notes = (
            RankNote.of(rank, self.names.get(rank, f"rank {rank}"), peer.pid)
            for rank, peer in self.ranks.items()
        )
        GroupNote(self.name, os.getpid(), tuple(notes)).write(self.workdir)
        for peer in self.ranks.values():
            self._selector.register(peer.channel, selectors.EVENT_READ, peer)

    def _wait_ready(self, deadline: float, tick: Callable[[str], None]) -> None:
        ready: set[int] = set()
        errors = StartErrors(self.world_size)
        meetings = Meetings(self.world_size, self.answer)
        while len(ready) < self.world_size:
            tick(f"collecting on {self._except(ready)} of group {self.name}")
            for peer, message in self.messages(_TICK_SECONDS):
                if isinstance(message, Ready):
                    peer.missing, peer.endpoint = message.missing, message.endpoint
                    ready.add(peer.rank)
                elif isinstance(message, Exchange):
                    meetings.arrive(peer.rank, message)
                elif isinstance(message, RankBroken):
                    errors.add(peer.rank, message.text)
                    meetings.leave(peer.rank, "could not start")
                elif message is None:
                    errors.lost(peer.rank)
                    meetings.leave(peer.rank, "died")
            if errors.complete(ready):
                raise GroupError(errors.text(self._describe_exits))
            if not errors:
                self._check_start(deadline)

    def _except(self, ranks: Collection[int]) -> str:
        return plural_ranks(sorted({*range(self.world_size)} - {*ranks}))

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
        return "\n".join([self._describe_exits([]), self._ended.error, self._launcher.log_tail()])

    def _describe_exits(self, lost: list[int]) -> str:
        """Describe how ranks that never got ready ended: the one elastic saw fail, else `lost`."""
        ended = self.wait_ended(_REAP_SECONDS)
        exits = ended.exits if ended is not None else {}
        first = [ended.first] if ended is not None and ended.first >= 0 else lost
        return "\n".join(
            f"rank {rank}: {describe_exit(exits.get(rank))}\n{self._stderr_tail(rank)}"
            for rank in first
        )

    def _stderr_tail(self, rank: int) -> str:
        evidence, said = split_stderr(self.pipes.take(rank).get("stderr", ""))
        lines = (said or self._early_stderr(rank)).splitlines()[-_SHOWN_LINES:]
        return "\n".join([*lines, evidence.dump]).rstrip()

    def _early_stderr(self, rank: int) -> str:
        """Return what a rank wrote to elastic's log, before its output was redirected to us."""
        logs = sorted(self.workdir.glob(f"logs/*/attempt_*/{rank}/stderr.log"))
        return "\n".join(log.read_text(errors="replace") for log in logs)

    def messages(self, timeout: float) -> list[tuple[RankPeer, Message | None]]:
        """Return the messages of ranks within `timeout` seconds; None for a rank that is gone.

        If there is a message, the pipes are read as well. So everything that a rank has printed
        before a message has been read when the message is returned.
        """
        received: list[tuple[RankPeer, Message | None]] = []
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, RankPeer):
                self._receive(key.data, received)
            else:
                key.data()
        if received:
            self.pipes.read()
        return received

    def _receive(self, peer: RankPeer, received: list[tuple[RankPeer, Message | None]]) -> None:
        try:
            messages = peer.channel.receive_ready()
        except ChannelClosed:
            self._lose(peer)
            received.append((peer, None))
            return
        for message in messages:
            if isinstance(message, WarningSeen):
                self._on_warning(peer.rank, message)
            else:
                received.append((peer, message))

    def _lose(self, peer: RankPeer) -> None:
        if peer.alive:
            peer.alive = False
            self._selector.unregister(peer.channel)

    def send(self, rank: int, message: Message) -> None:
        """Send to a rank. If the rank is gone, the next read will show it."""
        self.send_packed((rank,), pack(message))

    def send_packed(self, ranks: Iterable[int], frame: bytes) -> None:
        """Send a frame made by protocol.channel.pack to several ranks."""
        for rank in ranks:
            with suppress(ChannelClosed):
                self.ranks[rank].channel.send_packed(frame)

    def send_on_watch(self, rank: int, message: Message) -> None:
        """Send a message that a rank must receive whatever its threads do."""
        with suppress(ChannelClosed):
            self.ranks[rank].watch.send(message)

    def answer(self, ranks: Iterable[int], message: Exchanged) -> None:
        """Answer a meeting of some ranks."""
        self.send_packed(ranks, pack(message))

    def kill_ranks(self, ranks: Iterable[int]) -> None:
        """Have some ranks killed. The group goes on, until it is replaced after the test."""
        wanted = tuple(ranks)
        for rank in wanted:
            self.ranks[rank].killed = True
        self.send_to_launcher(KillRanks(self.name, wanted))

    def send_to_launcher(self, message: Message) -> None:
        """Send to the launcher; raises GroupError if it is gone."""
        channel = self._launcher.channel
        try:
            if channel is not None:
                channel.send(message)
        except ChannelClosed as error:
            raise GroupError(f"the launcher process died:\n{self._launcher.log_tail()}") from error

    @property
    def ended(self) -> GroupEnded | None:
        """How the group ended; None while the launcher still runs it, as far as known."""
        return self._ended

    def _receive_from_launcher(self) -> None:
        assert self._launcher.channel is not None
        messages: list[Message]
        try:
            messages = self._launcher.channel.receive_ready()
        except ChannelClosed:
            self._selector.unregister(self._launcher.channel)
            messages = [GroupEnded(self.name, {}, "the launcher process died")]
        for message in messages:
            if isinstance(message, GroupEnded) and message.group == self.name:
                self._ended = self._ended or message

    def wait_ended(self, seconds: float) -> GroupEnded | None:
        """Wait up to `seconds` for the end of the group; return how it ended, or None."""
        deadline = time.monotonic() + seconds
        while self.ended is None and time.monotonic() < deadline:
            self.messages(_TICK_SECONDS / 5)  # read, so that no rank blocks on a full pipe
        return self.ended

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does, to every rank."""
        for peer in self.ranks.values():
            with suppress(ProcessLookupError):
                if not peer.killed:
                    os.kill(peer.pid, signal.SIGINT)

    def close(self, seconds: float = _LEAVE_SECONDS) -> list[str]:
        """Let every rank tear down its session and exit; kill the others after `seconds`.

        Returns the errors of the ranks meanwhile.
        """
        errors = []
        busy = {rank for rank, peer in self.ranks.items() if not peer.killed}
        for rank in busy:
            self.send(rank, Shutdown())
            self.send_on_watch(rank, Shutdown())  # the rank may not be waiting for an order
        # the teardown of session fixtures may include meetings
        meetings = Meetings(self.world_size, self.answer)
        for rank in {*self.ranks} - busy:
            meetings.lose(rank)
        deadline = time.monotonic() + seconds
        while self.ended is None and time.monotonic() < deadline:
            for peer, message in self.messages(_TICK_SECONDS):
                if isinstance(message, Exchange):
                    meetings.arrive(peer.rank, message)
                elif isinstance(message, RankBroken):
                    errors.append(f"rank {peer.rank}: {message.text}")
                elif message is None or isinstance(message, TornDown):
                    if message is not None:
                        self.outputs[peer.rank] = message.output
                    meetings.leave(peer.rank, "left")
                    busy.discard(peer.rank)
            if not busy:
                deadline = min(deadline, time.monotonic() + _EXIT_SECONDS)
        if self.ended is None:
            errors += [f"rank {rank} did not leave within {seconds:g} s" for rank in busy]
        self.kill()
        return errors

    def kill(self) -> None:
        """End every process of the group at once. Raises GroupError if a process survives."""
        try:
            if self.ended is None:
                self.send_to_launcher(KillGroup(self.name))
                if self.wait_ended(_LEAVE_SECONDS) is None:
                    raise GroupError(f"worker group {self.name} survived SIGKILL")
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        for peer in self.ranks.values():
            peer.alive = False
            peer.channel.close()
            peer.watch.close()
            # each rank led a process group of its own, in which children of it may be left
            with suppress(ProcessLookupError):
                if not peer.killed:  # else with all of its group, and its number may be another's
                    os.killpg(peer.pid, signal.SIGKILL)
        self.ranks = {}  # a second call must not kill new processes with the same ids
        self._selector.close()
        self.pipes.close()
        shutil.rmtree(self.workdir, ignore_errors=True)
