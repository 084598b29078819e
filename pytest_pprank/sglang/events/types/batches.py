"""Events of batches and forwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_pprank.sglang.events.types.base import Event
from pytest_pprank.sglang.events.types.memory import KvReader, TokenPool


@dataclass(frozen=True)
class Forward:
    """One forward of one stage: in which iteration, of which requests.

    `mode` is SGLang's ForwardMode in lower case; `extends` gives, for a forward of prompts, the
    range of tokens of each request (half open).
    """

    iteration: int
    mode: str
    rids: tuple[str, ...]
    extends: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        extends = ", ".join(f"{start}-{end}" for start, end in self.extends)
        tokens = f" (tokens {extends})" if extends else ""
        return f"{self.mode} of {', '.join(self.rids)}{tokens}"


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
    are not what their table says (see `sglang.batches.fields`), in words. `sizes`: entries of its
    tensors, by field. `origin`: None where it was not seen how it was made. `contents`: None where
    looking costs. `on_host`: what the forward reads on its device, and gets on the host.
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
