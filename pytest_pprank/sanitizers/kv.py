"""KV: balanced when the event loops have been left, nothing given back twice or used after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pytest_pprank.sanitizers.base import Sanitizer
from pytest_pprank.wire.ledger_file import Site

_LEAK = (
    "every path that ends a request (finish, abort, error, retraction) must give back its KV, "
    "slots and locks: release_kv_cache, free, dec_lock_ref"
)
_TWICE = "one of two paths that both end a request must not give back what it no longer owns"
_SENT = "every chunk of a prompt must be sent, from where the last one ended (start_send_idx)"


class Kv(Sanitizer):
    """Keeps a book of who took what; see sglang.kv_book."""

    name: ClassVar[str] = "kv"

    def begin(self) -> None:
        from pytest_pprank.sglang.kv_book import KvBook, open_book
        from pytest_pprank.sglang.kv_values import KvValues, open_values

        self._book = KvBook(self._misused)
        for seam, listener in self._book.listeners().items():
            self.watch.listen(seam, listener)
        self._sent: dict[int, tuple[Any, int]] = {}
        self.watch.listen("forward", self._forward)
        self.watch.listen("transfer_send", self._send)
        open_book(self._book)
        self.watch.at_end(lambda: open_book(None))
        self._values = KvValues()
        self._kv_pool: Any = None
        self.watch.listen("slot_free", self._slot_free)
        open_values(self._values)
        self.watch.at_end(lambda: open_values(None))

    def quiescent(self, scheduler: Any) -> None:
        from pytest_pprank.sglang.idle import idle_problems

        if problems := idle_problems(scheduler):
            head = "not balanced, with all requests done:"
            self.watch.report("\n".join([head, *problems]), (), _LEAK)
        for text in self._sent_wrongly(scheduler):
            self.watch.report(text, (), _SENT)

    def _misused(self, text: str, stack: tuple[Site, ...]) -> None:
        self.watch.report(text, stack, _TWICE)

    def _forward(self, passage: Any) -> None:
        """Every KV token that a forward reads or writes must be somebody's."""
        batch = passage.argument(1, "forward_batch")
        runner = passage.args[0]
        self._kv_pool = getattr(runner, "token_to_kv_pool", None)
        allocator = runner.token_to_kv_pool_allocator
        mode = batch.forward_mode
        if mode.is_idle() or not self._book.follows(allocator) or batch.out_cache_loc is None:
            return
        from pytest_pprank.devices.look import host_values

        self._book.check_in_use(allocator, batch.out_cache_loc, "the forward's output")
        table = host_values(runner.req_to_token_pool.req_to_token)
        rids = getattr(batch, "rids", None) or ["?"] * len(batch.req_pool_indices)
        rows = zip(
            rids,
            host_values(batch.req_pool_indices).tolist(),
            host_values(batch.seq_lens).tolist(),
            strict=True,
        )
        for rid, row, length in rows:
            self._book.check_in_use(allocator, table[row, :length], f"the KV of {rid}")

    def _slot_free(self, passage: Any) -> None:
        """What a failure of assert_tokens_equal_reference is explained from."""
        req = passage.argument(1, "req")
        if self._kv_pool is not None:
            self._values.keep(req, passage.args[0], self._kv_pool)

    def _send(self, passage: Any) -> None:
        sender, indices = passage.args[0], passage.argument(1, "kv_indices")
        _, before = self._sent.get(id(sender), (sender, 0))
        self._sent[id(sender)] = (sender, before + len(indices))

    def _sent_wrongly(self, scheduler: Any) -> Iterator[str]:
        """KV that was sent for a request is that of its whole prompt."""
        from pytest_pprank.sglang.holders import seen_requests

        if scheduler.token_to_kv_pool_allocator.page_size != 1:
            return
        for req in seen_requests(scheduler):
            sent = self._sent.get(id(getattr(req, "disagg_kv_sender", None)))
            reason = type(req.finished_reason).__name__
            if sent is None or reason != "FINISH_LENGTH":
                continue
            wanted = len(req.origin_input_ids) - int(getattr(req, "disagg_decode_prefix_len", 0))
            if sent[1] != wanted:
                yield f"KV of {sent[1]} tokens was sent for {req.rid}, whose prompt has {wanted}"
