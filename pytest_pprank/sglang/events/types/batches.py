"""Events of batches and forwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_pprank.sglang.events.types.base import Event
from pytest_pprank.sglang.events.types.memory import KvReader, TokenPool


@dataclass(frozen=True)
class Forward:
    """One forward of one stage: its iteration and its requests.

    `mode`: SGLang's ForwardMode in lower case. `extends`: in a forward of prompts, the range of
    tokens of each request (half open).
    """

    iteration: int
    mode: str
    rids: tuple[str, ...]
    extends: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        extends = ", ".join(f"{start}-{end}" for start, end in self.extends)
        tokens = f" (tokens {extends})" if extends else ""
        of = f" of {', '.join(self.rids)}" if self.rids else ""
        return f"{self.mode}{of}{tokens}"


@dataclass(frozen=True)
class BatchPrepared(Event):
    """A ScheduleBatch has been prepared for a forward.

    `lengths`: the number of tokens of each request; `tokens`: the KV tokens of all of them, in
    order. Both are empty if tokens are not tracked.
    """

    rids: tuple[str, ...]
    pool: TokenPool | None = None
    lengths: tuple[int, ...] = ()
    tokens: Sequence[int] = ()


@dataclass(frozen=True)
class ForwardMade(Event):
    """A ForwardBatch has been made of a ScheduleBatch.

    `iteration`: the current one of the event loop; None outside of a loop, as in the profiler.
    """

    forward: Forward
    iteration: int | None = None


@dataclass(frozen=True)
class LastToken:
    """What the host knows of a request: its number of tokens, and the last token."""

    count: int
    token: int


@dataclass(frozen=True)
class Origin:
    """The ScheduleBatch that a ForwardBatch was made of, as it is when the forward begins.

    `lengths`: the number of tokens of each request in this forward. `last`: in a decode forward,
    the last token of each request, if the host knows it (not with overlap scheduling).
    """

    rids: tuple[str, ...]
    lengths: tuple[int, ...]
    mode: str
    overlap: bool = False
    last: tuple[LastToken, ...] = ()

    @property
    def decode(self) -> bool:
        """Whether the batch is for one token of each request."""
        return self.mode == "decode"


@dataclass(frozen=True)
class ForwardContents:
    """The values in the tensors of a ForwardBatch.

    `positions`: None unless it has one number per token. `written`: the KV tokens that the forward
    writes (out_cache_loc). `rows`: the KV tokens of each request, from its row of req_to_token.
    """

    input_ids: Sequence[int] | None
    positions: Sequence[int] | None
    seq_lens: Sequence[int]
    written: Sequence[int]
    rows: tuple[Sequence[int], ...]


@dataclass(frozen=True)
class HostTensor:
    """A tensor that a forward reads on its device but receives on the host.

    `name`: its field; `text`: a description of the tensor.
    """

    name: str
    text: str


@dataclass(frozen=True)
class ForwardEntry(Event):
    """A ForwardBatch enters the model.

    `mode`: SGLang's ForwardMode in lower case. `extend`: whether it is a forward of prompts that
    does not verify drafts. `rids`: as in the batch itself. `problems`: in words, fields that differ
    from their table (see `sglang.batches.fields`). `sizes`: entries of its tensors, by field.
    `origin`: None if its making was not seen. `contents`: None if reading the tensors needs a
    device copy. `on_host`: tensors that are read on the device, but are on the host. `iteration`:
    as in ForwardMade.
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
    """A request that waits for a forward, and the most tokens that it may reach."""

    rid: str
    most_tokens: int


@dataclass(frozen=True)
class BatchScheduled(Event):
    """A Scheduler has chosen what to run next.

    `pending`: all requests that are queued, in the middle of a prompt, or running. `slots`: the
    number of microbatches. `free_tokens` (of `total_tokens`) and `free_request_slots` are those at
    that moment.
    """

    pending: tuple[Pending, ...]
    slots: int
    free_tokens: int
    total_tokens: int
    free_request_slots: int
