"""KV is balanced when the event loops have ended; nothing is freed twice or used when free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.rank.patches import patch
from pytest_pprank.sglang.events.types import (
    ForwardEntry,
    KvReader,
    KvSent,
    Quiescent,
    SlotFreed,
    Stack,
)
from pytest_pprank.sglang.model.kv_values import KvValues
from pytest_pprank.sglang.stage.kv_book import KvBook
from pytest_pprank.sglang.stage.stage import this_stage

_LEAK = (
    "every path that ends a request (finish, abort, error, retraction) must give back its KV, "
    "slots and locks: release_kv_cache, free, dec_lock_ref"
)
_TWICE = "one of two paths that both end a request must not give back what it no longer owns"
_SENT = "every chunk of a prompt must be sent, from where the last one ended (start_send_idx)"


class Kv(Sanitizer):
    """Records the owner of each KV token, slot and lock; see sglang.stage.kv_book."""

    name: ClassVar[str] = "kv"

    def begin(self) -> None:
        self._book = KvBook(self._misused)
        for hook, listener in self._book.listeners().items():
            self.watch.listen(hook, listener)
        self._sent: Counter[Hashable] = Counter()
        self.watch.listen("forward", self._forward)
        self.watch.listen("transfer_send", self._send)
        self.watch.at_end(patch(this_stage(), "book", self._book))
        self._values = KvValues(self.watch.pprank.attention_tp)
        self._kv: KvReader | None = None
        self.watch.listen("slot_free", self._slot_free)
        self.watch.at_end(patch(this_stage(), "values", self._values))

    def quiescent(self, left: Quiescent) -> None:
        if problems := left.problems():
            head = "not balanced, with all requests done:"
            self.watch.report("\n".join([head, *problems]), (), _LEAK)
        for prompt in left.sent():
            sent = self._sent.get(prompt.sender)
            if sent is not None and sent != prompt.tokens:
                text = f"KV of {sent} tokens was sent for {prompt.rid}, whose prompt has "
                self.watch.report(f"{text}{prompt.tokens}", (), _SENT)

    def _misused(self, text: str, stack: Stack) -> None:
        self.watch.report(text, stack, _TWICE)

    def _forward(self, event: ForwardEntry) -> None:
        """Check that every KV token that a forward reads or writes is owned by a request."""
        self._kv = event.kv
        contents = event.contents
        if event.pool is None or contents is None:
            return
        self._book.check_in_use(event.pool, contents.written, "the forward's output")
        rids = event.rids or ("?",) * len(contents.rows)
        for rid, tokens in zip(rids, contents.rows, strict=True):
            self._book.check_in_use(event.pool, tokens, f"the KV of {rid}")

    def _slot_free(self, event: SlotFreed) -> None:
        """Keep the KV of a finished request, for assert_tokens_equal_reference.

        A failure of that assertion says where the KV begins to differ.
        """
        if self._kv is not None:
            self._values.keep(event, self._kv)

    def _send(self, event: KvSent) -> None:
        self._sent[event.sender] += event.tokens
