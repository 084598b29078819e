"""Typed, frozen events: what SGLang has done, or is about to do, on this rank.

They are decoded once from what SGLang passes (see `hooks`), and hold plain values. Contents of
tensors are in them only where looking costs nothing (`devices.look`). Fields of type ``Look`` are
called to look, and only while the event is being told: a moment later SGLang has changed it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pytest_pprank.sglang.engine_views import Forward
from pytest_pprank.wire.ledger_file import Site

T = TypeVar("T")
Look = Callable[[], T]
Stack = tuple[Site, ...]
Layer = tuple[Any, Any]
"""Keys and values of one layer, as numpy arrays [tokens, heads, size]."""


@dataclass(frozen=True)
class Event:
    """Base of all."""


# memory


@dataclass(frozen=True)
class TokenPool:
    """KV tokens that can be followed one by one: pages of one token, free to look at.

    `key` tells it from other pools. Its tokens are 1 to `size`; 0 is for padding. `free`: which of
    them nobody holds now.
    """

    key: int
    size: int
    free: Look[Sequence[int]]


class KvReader(Protocol):
    """Reads keys and values of a request on this stage, by the request slot that it has now."""

    @property
    def first_layer(self) -> int:
        """The first layer of the model that is on this stage."""

    @property
    def bytes_per_token(self) -> int:
        """What one token takes, in all layers of this stage."""

    def read(self, slot: int, tokens: int) -> tuple[Layer, ...]:
        """Copy the first `tokens` of the request that has this slot."""


@dataclass(frozen=True)
class KvAllocated(Event):
    """KV tokens have been taken: none where there was no room, or where they are not followed.

    `rid`: who they are for, empty where nobody is known yet, as in a batch that is being prepared.
    """

    pool: TokenPool | None
    tokens: Sequence[int] = ()
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class KvFreed(Event):
    """KV tokens are about to be given back.

    `pool` is None where they are not followed, and where SGLang only collects them, to give them
    back together.
    """

    pool: TokenPool | None
    tokens: Sequence[int] = ()
    stack: Stack = ()


@dataclass(frozen=True)
class KvCleared(Event):
    """An allocator has forgotten who holds what; `pool` is the `TokenPool.key` that it had."""

    pool: int


@dataclass(frozen=True)
class SlotAllocated(Event):
    """Requests have got their slots; none where there was no room."""

    rids: tuple[str, ...]
    stack: Stack = ()


@dataclass(frozen=True)
class SlotFreed(Event):
    """A request is about to give its slot back.

    `slot` is None for one that has none. `tokens`: how many of its tokens have KV.
    """

    rid: str
    slot: int | None = None
    tokens: int = 0


@dataclass(frozen=True)
class MetadataAllocated(Event):
    """A metadata slot of a KV transfer has been taken; None where all were."""

    slot: int | None
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class MetadataFreed(Event):
    """A metadata slot is about to be given back."""

    slot: int
    stack: Stack = ()


@dataclass(frozen=True)
class PrefixLocked(Event):
    """A prefix in the tree cache has been locked, by this request as far as it is known."""

    node: int
    rid: str = ""
    stack: Stack = ()


@dataclass(frozen=True)
class PrefixUnlocked(Event):
    """A prefix in the tree cache has been unlocked."""

    node: int
    rid: str = ""


# batches


@dataclass(frozen=True)
class BatchPrepared(Event):
    """A ScheduleBatch has been prepared for a forward.

    `lengths`: how many tokens of each request; `tokens`: KV tokens for all of them, in order. Both
    are empty where tokens are not followed.
    """

    rids: tuple[str, ...]
    pool: TokenPool | None = None
    lengths: tuple[int, ...] = ()
    tokens: Sequence[int] = ()


@dataclass(frozen=True)
class ForwardMade(Event):
    """A ForwardBatch has been made of a ScheduleBatch.

    `iteration`: of the event loop that did it; None elsewhere, as in the profiler.
    """

    forward: Forward
    iteration: int | None = None


@dataclass(frozen=True)
class LastToken:
    """What the host knows of a request: how many tokens it has, and the last one."""

    count: int
    token: int


@dataclass(frozen=True)
class Origin:
    """The ScheduleBatch that a ForwardBatch was made of, as it is when the forward begins.

    `lengths`: how many tokens of each request the forward is for. `last`: of each request, in a
    decode, where the host knows it (not with overlap scheduling).
    """

    rids: tuple[str, ...]
    lengths: tuple[int, ...]
    mode: str
    overlap: bool = False
    last: tuple[LastToken, ...] = ()

    @property
    def decode(self) -> bool:
        """Whether it is for one token of each request."""
        return self.mode == "decode"


@dataclass(frozen=True)
class ForwardContents:
    """What the tensors of a ForwardBatch hold. `positions` is None where they are not one number
    for each token. `written`: the KV tokens that the forward writes (out_cache_loc); `rows`: those
    of each request, by its row of req_to_token.
    """

    input_ids: Sequence[int] | None
    positions: Sequence[int] | None
    seq_lens: Sequence[int]
    written: Sequence[int]
    rows: tuple[Sequence[int], ...]


@dataclass(frozen=True)
class HostTensor:
    """A tensor that a forward reads on its device, and gets on the host: its field, and what it is
    in words.
    """

    name: str
    text: str


@dataclass(frozen=True)
class ForwardEntry(Event):
    """A ForwardBatch enters the model.

    `mode`: SGLang's ForwardMode in lower case. `extend`: whether it is a forward of prompts, and
    not one that verifies drafts. `rids`: as the batch itself has them. `problems`: its fields that
    are not what their table says (see `sglang.fields`), in words. `sizes`: entries of its tensors,
    by field. `origin`: None where it was not seen how it was made. `contents`: None where looking
    costs. `on_host`: what the forward reads on its device, and gets on the host.
    `iteration`: as of ForwardMade.
    """

    mode: str
    extend: bool = False
    rids: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    origin: Origin | None = None
    contents: ForwardContents | None = None
    on_host: tuple[HostTensor, ...] = ()
    pool: TokenPool | None = None
    kv: KvReader | None = None
    iteration: int | None = None

    @property
    def decode(self) -> bool:
        """Whether it is a forward of one token of each request."""
        return self.mode == "decode"


@dataclass(frozen=True)
class BatchResult(Event):
    """The result of a batch is about to be processed."""

    rids: tuple[str, ...]
    mode: str = ""


@dataclass(frozen=True)
class Pending:
    """A request that waits for a forward, and how many tokens it may come to."""

    rid: str
    most_tokens: int


@dataclass(frozen=True)
class BatchScheduled(Event):
    """A Scheduler has looked what to run next.

    `pending`: all requests that are queued, half-way in a prompt, or running. `slots`: how many
    microbatches there are. What is free then: `free_tokens` of `total_tokens`, and request slots.
    """

    pending: tuple[Pending, ...]
    slots: int
    free_tokens: int
    total_tokens: int
    free_request_slots: int


# what the stages agree on


@dataclass(frozen=True)
class ConsensusLocal(Event):
    """A stage has looked for which requests it is ready."""

    ready: frozenset[str]


@dataclass(frozen=True)
class ConsensusBrought(Event):
    """A stage has brought these requests to a consensus as ready; None for no consensus."""

    ready: tuple[str, ...] | None


@dataclass(frozen=True)
class ConsensusApplied(Event):
    """A stage has applied a consensus that it received; both None where there was none.

    `tells_failed`: whether what it applied has a place for requests that have failed.
    """

    received: tuple[str, ...] | None
    applied: tuple[str, ...] | None
    tells_failed: bool = False


@dataclass(frozen=True)
class HandshakesDone(Event):
    """Prefill has started these requests, because their handshake with decode is done.

    `status`: what this stage itself knows of each one's room, by request id, in the words of
    SGLang's KVPoll; empty where it knows none. `early`: those that SGLang starts before.
    """

    rids: tuple[str, ...]
    status: Mapping[str, str]
    early: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RoomTold(Event):
    """A stage of prefill is about to tell the first one of a room; `status` empty: it is gone."""

    room: int
    status: str


# messages and transfers


@dataclass(frozen=True)
class KvSent(Event):
    """KV is about to be sent to the decode side. `sender` is one for all chunks of a request."""

    sender: Hashable
    tokens: int
    room: int = 0


@dataclass(frozen=True)
class TransferPolled(Event):
    """A KV transfer has been asked how it goes; `status` in SGLang's own words (KVPoll)."""

    room: int
    status: str


@dataclass(frozen=True)
class Message(Event):
    """A message between two ranks. `peer` is a global rank."""

    group: str
    peer: int | None
    tag: int
    nbytes: int
    dtype: str
    shapes: tuple[tuple[int, ...], ...]


class MessageSent(Message):
    """Its send has been issued."""


class MessageReceived(Message):
    """Its receipt has been issued."""


# others


@dataclass(frozen=True)
class LogRecord(Event):
    """SGLang has logged something.

    `error`: what is being handled meanwhile, in words; `raised_at`: where that was raised, the
    innermost line first. `has_traceback`: whether the record itself comes with it.
    """

    text: str
    level: str
    is_error: bool
    site: Site
    has_traceback: bool = False
    error: str = ""
    raised_at: Stack = ()


@dataclass(frozen=True)
class SentPrompt:
    """A request of prefill's whose prompt was sent as a whole: how many tokens that must be."""

    rid: str
    sender: Hashable
    tokens: int


@dataclass(frozen=True)
class Quiescent(Event):
    """The event loops have been left in good order, with all work done: nothing may be held.

    `problems`: what is not idle or not balanced, in words. `sent`: the requests whose KV was sent,
    none where pages have more than one token.
    """

    problems: Look[Sequence[str]]
    sent: Look[Sequence[SentPrompt]]
