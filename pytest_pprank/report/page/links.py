"""What links events of different ranks: messages, collectives, and transfers of KV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from pytest_pprank.oplog.file import COLLECTIVE, CREATE, RECV, SEND, Operation
from pytest_pprank.topology import Sizes
from pytest_pprank.trace.file import TRANSFER, Detail

MESSAGE_LINK, COLLECTIVE_LINK, KV_LINK = "message", "collective", "kv"
_DONE = "Success"
"""SGLang's name for the status of a transfer whose KV has arrived."""


@dataclass(frozen=True)
class Link:
    """An arrow from the beginning of one event to another one, by their numbers.

    It leads to the end of the other one for a message, and to its beginning otherwise.
    """

    source: int
    target: int
    kind: str


class Placed(Protocol):
    """An event with the rank that it is of."""

    @property
    def lane(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def start(self) -> float: ...
    @property
    def details(self) -> dict[str, Detail]: ...


Numbers = Mapping[tuple[int, int], int]
"""By rank and number of an operation, the number of its event."""


def links_of(
    operations: Mapping[int, Sequence[Operation]],
    number_of: Numbers,
    events: Sequence[Placed],
    sizes: Sizes,
) -> Iterator[Link]:
    """Yield the links of a test of these sizes."""
    yield from _messages(operations, number_of)
    yield from _collectives(operations, number_of)
    if sizes.decode:
        yield from _transfers(events, sizes)


def _messages(operations: Mapping[int, Sequence[Operation]], number_of: Numbers) -> Iterator[Link]:
    """Pair the n-th send of a channel with the n-th receive of its counterpart."""
    sends = {
        (rank, operation.channel, operation.sequence): operation
        for rank, own in operations.items()
        for operation in own
        if operation.way == SEND and operation.sequence
    }
    for rank, own in operations.items():
        for recv in own:
            if recv.way != RECV or recv.peer is None or not recv.sequence:
                continue
            sent = sends.get((recv.peer, recv.channel.counterpart(rank), recv.sequence))
            if sent is not None:
                source = number_of[recv.peer, sent.number]
                yield Link(source, number_of[rank, recv.number], MESSAGE_LINK)


def _collectives(
    operations: Mapping[int, Sequence[Operation]], number_of: Numbers
) -> Iterator[Link]:
    """Link each collective of a group from rank to rank, in the order in which they came."""
    meetings: dict[tuple[str, str, int], dict[int, Operation]] = {}
    for rank, own in operations.items():
        for operation in own:
            if operation.way in (COLLECTIVE, CREATE) and operation.sequence:
                key = (operation.way, operation.group, operation.sequence)
                meetings.setdefault(key, {})[rank] = operation
    for meeting in meetings.values():
        came = sorted(meeting, key=lambda rank: meeting[rank].start)
        for earlier, later in pairwise(came):
            source = number_of[earlier, meeting[earlier].number]
            yield Link(source, number_of[later, meeting[later].number], COLLECTIVE_LINK)


def _transfers(events: Sequence[Placed], sizes: Sizes) -> Iterator[Link]:
    """Link the last sending of a room's KV with its stage of decode, when that sees it arrived.

    Decode has as many stages as prefill, or one, to which all send.
    """
    sent: dict[object, dict[int, int]] = {}
    for number, event in enumerate(events):
        room = event.details.get("room")
        if event.kind != TRANSFER or not room:
            continue
        if "tokens" in event.details:
            sent.setdefault(room, {})[event.lane] = number
        elif event.details.get("status") == _DONE:
            for lane, source in sent.get(room, {}).items():
                own = _sends_to(sizes, lane, event.lane)
                if own and events[source].start <= event.start:
                    yield Link(source, number, KV_LINK)


def _sends_to(sizes: Sizes, source: int, target: int) -> bool:
    """Return whether a rank of prefill may send KV to a rank of decode, by their stages."""
    prefill, decode = sizes.role_of(source), sizes.role_of(target)
    stage = decode.place(target)[0]
    return decode.name == "decode" and (decode.stages == 1 or stage == prefill.place(source)[0])
